"""The door of a worker of `run`: ``python -m tfddl.horovod.calling FOLDER``."""

import json
import os
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path

import cloudpickle

from tfddl.horovod.running import CALL, FAILURE, RESULT, SEARCH_PATH


def main(folder: Path, environ: Mapping[str, str]) -> None:
    """Calls the function that the folder has, and leaves there what it returned, or raised."""
    rank = environ["HOROVOD_RANK"]
    sys.path[:] = json.loads((folder / SEARCH_PATH).read_text())
    try:
        func, args, kwargs = cloudpickle.loads((folder / CALL).read_bytes())
        result = cloudpickle.dumps(func(*args, **kwargs))
    except BaseException:
        _leave(folder / FAILURE.format(rank), traceback.format_exc().encode())
        raise
    _leave(folder / RESULT.format(rank), result)


def _leave(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"writing-{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), os.environ)
