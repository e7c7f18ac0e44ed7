"""`start_timeline` and `stop_timeline` with Horovod's signatures."""

import os

import tfddl
from tfddl._src.runtime import current


def start_timeline(file_path: str | os.PathLike[str], mark_cycles: bool = False) -> None:
    """`tfddl.start_timeline`; ``mark_cycles`` has no effect: there is no cycle time here."""
    tfddl.start_timeline(file_path)


def stop_timeline() -> None:
    """`tfddl.stop_timeline`; does nothing where this rank has started none."""
    if current().tracer.path is not None:
        tfddl.stop_timeline()
