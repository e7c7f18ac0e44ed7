"""What TensorFlow logs to stderr in every process at its start, though nothing is wrong.

TF_CPP_MIN_LOG_LEVEL=1 leaves out what is only information, but not all of these lines: some are
written whatever the level (https://github.com/tensorflow/tensorflow/issues/100442), and some as
errors, which no level hides without hiding the real ones.

Without imports of ours: it is also run as a program, see `filtered_stderr`.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"

INFORMATION, WARNINGS = "0", "1"
"""Values of it: all is logged, or warnings and errors."""

_DRAIN_S = 5.0


def _logged(severity: str, text: str) -> str:
    """A line of absl's C++ logging, which TensorFlow never initializes, or of its older own.

    What a script logs by absl's Python package has its date in the place of 0000.
    """
    absl = rf"{severity}0000 00:00:\d+\.\d+\s+\d+ \S+:\d+\] "
    own = rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: {severity} \S+:\d+\] "
    return f"(?:{absl}|{own}){text}"


_EVERYWHERE = re.compile(
    "|".join(
        (
            "WARNING: All log messages before absl::InitializeLog\\(\\) is called are written to "
            "STDERR$",
            # Information: oneDNN, CUDA's absence, instructions of this CPU.
            _logged("I", ""),
            # The second line of "This TensorFlow binary is optimized to use available CPU …".
            r"To enable the following instructions: [A-Z0-9_ ]+, in other operations, rebuild "
            r"TensorFlow with the appropriate compiler flags\.$",
            # Two libraries of one wheel register the same (https://github.com/openxla/xla/
            # issues/20803); TensorFlow 2.18 to 2.20.
            _logged(
                "E",
                r"Unable to register cu\w+ factory: Attempting to register factory for plugin "
                r"cu\w+ when one has already been registered$",
            ),
            _logged(
                "W",
                r"computation placer already registered\. Please check linkage and avoid linking "
                r"the same target more than once\.$",
            ),
        )
    )
)
# CUDA is asked for its GPUs on every machine, and fails where it isn't installed (303: there is no
# libcuda.so.1) or finds none (https://github.com/tensorflow/tensorflow/issues/37689). Any other
# reason is one to read.
_WITHOUT_GPU = re.compile(
    _logged("E", r"failed call to cuInit: .*(?:UNKNOWN ERROR \(303\)|CUDA_ERROR_NO_DEVICE\b)")
)


def without_startup_logs(lines: Iterable[str], *, has_gpu: bool) -> list[str]:
    """Leaves out the lines that mean nothing.

    Args:
        lines: of a process' stderr, without their ends.
        has_gpu: whether there is a GPU where it runs: then CUDA's failure is the cause of what
            follows, and stays.
    """
    return [
        line
        for line in lines
        if not _EVERYWHERE.match(line) and (has_gpu or not _WITHOUT_GPU.match(line))
    ]


def are_hidden(environment: Mapping[str, str]) -> bool:
    """Whether TensorFlow isn't to log information: unless its level is set to 0."""
    return environment.get(LOG_LEVEL) != INFORMATION


def has_gpu(root: Path = Path("/")) -> bool:
    """Whether this machine has a GPU of NVIDIA's, with a driver or without one.

    Args:
        root: where dev, proc and sys are.
    """
    drivers = (*root.glob("dev/nvidia*"), root / "proc/driver/nvidia", root / "dev/dxg")  # dxg: WSL
    if any(os.path.exists(path) for path in drivers):  # Path.exists raises PermissionError
        return True
    for device in root.glob("sys/bus/pci/devices/*"):
        with contextlib.suppress(OSError):  # unplugged meanwhile; in a container, not to be read
            vendor = (device / "vendor").read_text().strip()
            # 03: display controllers, among them GPUs without any connector (PCI Code and ID
            # Assignment Specification).
            if vendor == "0x10de" and (device / "class").read_text().startswith("0x03"):
                return True
    return False


@contextlib.contextmanager
def filtered_stderr() -> Iterator[None]:
    """Leaves these lines out of what this process writes to stderr within the context.

    C++ writes them to the descriptor. It leads to a second process meanwhile, so that none of the
    last words are lost where TensorFlow aborts this one. Where stderr is closed, nothing is done.
    """
    try:
        kept = -1 if sys.stderr is None else os.dup(2)
    except OSError:
        kept = -1
    if kept < 0:
        yield
        return
    sys.stderr.flush()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__],  # without site-packages: it starts in some 20 ms
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for it: what this process then writes is shown.
    )
    assert process.stdin is not None
    os.dup2(process.stdin.fileno(), 2)
    process.stdin.close()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        # It ends when nobody can write any more; a child of ours may still have the descriptor.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_DRAIN_S)


def _main() -> None:
    machine_has_gpu = has_gpu()
    for line in sys.stdin.buffer:
        text = line.decode("utf-8", "surrogateescape").rstrip("\n")
        if without_startup_logs([text], has_gpu=machine_has_gpu):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()


if __name__ == "__main__":
    _main()
