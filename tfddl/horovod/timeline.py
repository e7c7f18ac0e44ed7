"""Horovod's timeline; see `tfddl.start_timeline`."""

import os

import tfddl


def start_timeline(file_path: str | os.PathLike[str], mark_cycles: bool = False) -> None:
    """See `tfddl.start_timeline`. There are no cycles to mark: tensors travel when they are due."""
    tfddl.start_timeline(file_path)


def stop_timeline() -> None:
    """See `tfddl.stop_timeline`; all ranks call it together."""
    tfddl.stop_timeline()
