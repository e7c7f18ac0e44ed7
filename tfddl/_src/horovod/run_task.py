"""A worker of `run`: ``python -m tfddl._src.horovod.run_task CALL_FD ANSWER_FD…``."""

import os
import pickle
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import cloudpickle


def main(descriptors: Sequence[int], environ: Mapping[str, str]) -> None:
    """Calls the function that the first file has, and leaves what it returned, or raised.

    Args:
        descriptors: Of the file with the function, and of one per rank for its answer: at which
            start of the job and when it was given (`time.monotonic`), whether it is a failure, and
            the pickled result or the text of the traceback.
        environ: The worker's.
    """
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    call, *answers = descriptors
    answer = answers[int(environ["HOROVOD_RANK"])]
    start = int(environ.get("TFDDL_RESTARTS", "0"))
    _opened(answer, "wb").close()  # an earlier start may have left something
    try:
        # Not by the descriptor, whose offset all workers share.
        with _opened(call, "rb") as file:
            sys.path[:] = pickle.load(file)
            func, args, kwargs = cloudpickle.load(file)
        result = cloudpickle.dumps(func(*args, **kwargs))
    except BaseException:
        _leave(answer, (start, time.monotonic(), True, traceback.format_exc()))
        raise
    _leave(answer, (start, time.monotonic(), False, result))


def _leave(descriptor: int, answer: tuple[int, float, bool, Any]) -> None:
    with _opened(descriptor, "wb") as file:
        pickle.dump(answer, file)


def _opened(descriptor: int, mode: str) -> Any:
    return open(f"/proc/self/fd/{descriptor}", mode)


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]], os.environ)
