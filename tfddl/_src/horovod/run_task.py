"""A worker of `run`: ``python -m tfddl._src.horovod.run_task CALL_FD RESULT_FD…``."""

import os
import pickle
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle


def main(descriptors: Sequence[int], environ: Mapping[str, str]) -> None:
    """Calls the function in the first file, and writes what it returned or raised to the rank's.

    Args:
        descriptors: Of the file with the pickled call, and of a file per rank for a pickled tuple:
            the number of the restart, `time.monotonic()`, whether the function raised, and the
            pickled result or the traceback's text.
        environ: The worker's environment.
    """
    # Children of the function must not keep the files alive.
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    call, *results = descriptors
    own = results[int(environ["HOROVOD_RANK"])]
    start = int(environ.get("TFDDL_RESTARTS", "0"))
    _reopen(own, "wb").close()  # Truncates what an earlier start has written.
    try:
        # The descriptor's own offset is shared by all workers.
        with _reopen(call, "rb") as file:
            sys.path[:] = pickle.load(file)
            func, args, kwargs = cloudpickle.load(file)
        result = cloudpickle.dumps(func(*args, **kwargs))
    except BaseException:
        _write(own, (start, time.monotonic(), True, traceback.format_exc()))
        raise
    _write(own, (start, time.monotonic(), False, result))


def _write(descriptor: int, result: tuple[int, float, bool, Any]) -> None:
    with _reopen(descriptor, "wb") as file:
        pickle.dump(result, file)


def _reopen(descriptor: int, mode: str) -> Any:
    return open(f"/proc/self/fd/{descriptor}", mode)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]], os.environ)
