"""`start_timeline` and `stop_timeline` with Horovod's signatures."""

import os

import tfddl
from tfddl._src.collectives import is_recording
from tfddl._src.horovod.reductions import warn_no_effect


def start_timeline(file_path: str | os.PathLike[str], mark_cycles: bool = False) -> None:
    """`tfddl.start_timeline`; ``mark_cycles`` has no effect, which a warning says."""
    warn_no_effect("mark_cycles", mark_cycles, "each collective starts when its tensors are there.")
    tfddl.start_timeline(file_path)


def stop_timeline() -> None:
    """`tfddl.stop_timeline`; does nothing where this rank has started none."""
    if is_recording():
        tfddl.stop_timeline()
