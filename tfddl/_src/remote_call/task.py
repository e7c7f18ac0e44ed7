"""A worker of `tfddl.run`: makes the call that it is given, and writes what came of it."""

import os
import pickle
import sys
from collections.abc import Mapping
from typing import Any

from tfddl._src.launcher.agent_starter import import_paths
from tfddl._src.launcher.call_files import CALL, RESULT
from tfddl._src.remote_call.pickling import (
    Answer,
    dump_failure,
    dump_result,
    load_call,
    user_frames,
)


def command(python: str) -> tuple[str, ...]:
    """The command line of a worker."""
    paths = import_paths()
    return (
        python,
        "-c",
        f"import sys;sys.path[:0]={paths!r};from tfddl._src.remote_call.task import run;run()",
    )


def run() -> None:
    """The entry point."""
    sys.argv[:] = ["tfddl.run"]
    main(os.environ)


def main(environ: Mapping[str, str]) -> None:
    """Calls the function, and writes an `Answer`.

    Args:
        environ: the worker's environment, which names the files.

    Raises:
        BaseException: What the function has raised, so that the worker fails as a script would:
            its stderr says why, to the launcher as well, and its peers learn of it at its exit.
    """
    call, result = (int(environ[name]) for name in (CALL, RESULT))
    # Children of the function must not keep the files alive.
    for descriptor in (call, result):
        os.set_inheritable(descriptor, False)
    try:
        with _reopen(call, "rb") as file:
            data = file.read()
        answer = Answer(dump_result(load_call(data).make()))
    except BaseException as error:  # A SystemExit is a failure as well: there is no result.
        _write(result, dump_failure(error))
        error.__traceback__ = user_frames(error)
        raise
    _write(result, answer)


def _write(descriptor: int, answer: Answer) -> None:
    with _reopen(descriptor, "wb") as file:
        pickle.dump(answer, file)


def _reopen(descriptor: int, mode: str) -> Any:
    # The offset of an inherited descriptor is shared by all workers.
    return open(f"/proc/self/fd/{descriptor}", mode)
