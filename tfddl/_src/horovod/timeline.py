"""Horovod's timeline; see `tfddl.start_timeline`."""

import os

import tfddl
from tfddl._src.collectives import is_recording


def start_timeline(file_path: str | os.PathLike[str], mark_cycles: bool = False) -> None:
    """See `tfddl.start_timeline`. There are no cycles to mark: tensors travel when they are due."""
    tfddl.start_timeline(file_path)


def stop_timeline() -> None:
    """See `tfddl.stop_timeline`; where this rank has begun none, it does nothing."""
    if is_recording():
        tfddl.stop_timeline()
