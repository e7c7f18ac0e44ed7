"""How many workers `-np auto` is on this machine. Loads no TensorFlow, and asks no CUDA."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfddl._src.cpu import num_quota_cores
from tfddl._src.launcher.cores import num_sockets, usable_cores

VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"

_NVIDIA_SMI = ("nvidia-smi", "-L")
# The driver may have to wake the GPUs first.
_NVIDIA_SMI_S = 30.0
_DRIVER = Path("/proc/driver/nvidia/gpus")
_GPU, _MIG = re.compile(r"GPU \d+:"), re.compile(r"\s+MIG ")


@dataclass(frozen=True)
class WorkerCount:
    """A number of workers, and what it was taken from.

    Attributes:
        number: at least 1.
        reason: for the user to read.
    """

    number: int
    reason: str


def count_workers(environment: Mapping[str, str]) -> WorkerCount:
    """One worker for each visible GPU; without a GPU, one for each CPU socket.

    Args:
        environment: CUDA_VISIBLE_DEVICES in it hides GPUs, as it does from the workers.
    """
    visible = environment.get(VISIBLE_DEVICES)
    if visible is None:
        gpus, source = _installed_gpus()
    else:
        gpus, source = _visible_gpus(visible), VISIBLE_DEVICES
    if gpus:
        return WorkerCount(_usable(gpus), f"{_describe(gpus)} ({source})")
    hidden = "no GPU" if visible is None else f"no GPU by {VISIBLE_DEVICES}"
    cores = usable_cores()
    sockets = num_sockets(cores)
    number = min(sockets, num_quota_cores())
    limit = f", and the cgroup's quota is {number} of their cores" if number < sockets else ""
    return WorkerCount(number, f"{hidden}; {_plural(sockets, 'socket')} of CPUs{limit}")


def _visible_gpus(text: str) -> list[bool]:
    """Of each GPU that the variable names, whether it is a MIG instance.

    CUDA takes the names up to the first that is none: "-1", or Slurm's "NoDevFiles".
    """
    found = []
    for name in (word.strip() for word in text.split(",")):
        if not (name.isdecimal() or name.startswith(("GPU-", "MIG-"))):
            break
        found.append(name.startswith("MIG-"))
    return found


def _installed_gpus() -> tuple[list[bool], str]:
    """The same for all GPUs of this machine, and who says so."""
    try:
        done = subprocess.run(
            _NVIDIA_SMI, capture_output=True, text=True, timeout=_NVIDIA_SMI_S, check=True
        )
        return listed_gpus(done.stdout), " ".join(_NVIDIA_SMI)
    except (OSError, subprocess.SubprocessError):
        # A container may have the devices, but not the program.
        gpus = list(_DRIVER.iterdir()) if _DRIVER.is_dir() else []
        return [False] * len(gpus), str(_DRIVER)


def listed_gpus(listing: str) -> list[bool]:
    """Of each GPU in the output of `nvidia-smi -L`, whether it is a MIG instance.

    A line begins with "GPU 0: " for each GPU; below it, one begins with "  MIG " for each instance
    that it is divided into.
    """
    found: list[bool] = []
    for line in listing.splitlines():
        if _GPU.match(line):
            found.append(False)
        elif _MIG.match(line):
            # The GPU itself can't be used then; its first instance takes its place.
            if found and not found[-1]:
                found.pop()
            found.append(True)
    return found


def _usable(gpus: Sequence[bool]) -> int:
    """A process sees all GPUs that are no MIG instances, else one instance.

    References:
        NVIDIA Multi-Instance GPU User Guide, "CUDA Device Enumeration",
        https://docs.nvidia.com/datacenter/tesla/mig-user-guide/
    """
    return gpus.count(False) or 1


def _describe(gpus: Sequence[bool]) -> str:
    whole, instances = gpus.count(False), gpus.count(True)
    if whole:
        return _plural(whole, "visible GPU")
    return f"{_plural(instances, 'MIG instance')}, of which a process sees one"


def _plural(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"
