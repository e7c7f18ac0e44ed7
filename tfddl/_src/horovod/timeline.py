"""`start_timeline` and `stop_timeline` with Horovod's signatures."""

import os

import tfddl
from tfddl._src.collectives import is_recording


def start_timeline(file_path: str | os.PathLike[str], mark_cycles: bool = False) -> None:
    """`tfddl.start_timeline`; ``mark_cycles`` has no effect: there is no cycle time here."""
    tfddl.start_timeline(file_path)


def stop_timeline() -> None:
    """`tfddl.stop_timeline`; does nothing where this rank has started none."""
    if is_recording():
        tfddl.stop_timeline()
