"""The machine that a worker runs on: how busy its cores are, and what memory the process has."""

import dataclasses
import os
import platform
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

_PROC = Path("/proc")
# user, nice, system, steal. Interrupts are left out: they also serve what we send to ourselves.
_BUSY_COLUMNS = (0, 1, 2, 7)


def processor() -> str:
    """The model of the first core."""
    lines = (_PROC / "cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()  # arm64 has no such line.


def work_s(cores: Collection[int], *, proc: Path = _PROC) -> np.ndarray:
    """Counters in seconds, shape (3,): time; what the cores, and this process, have worked."""
    names = {f"cpu{core}" for core in cores}
    lines = map(str.split, (proc / "stat").read_text().splitlines())
    mine = [words[1:] for words in lines if words[0] in names]
    ticks = sum(int(words[column]) for words in mine for column in _BUSY_COLUMNS)
    return np.array([time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()])


@dataclasses.dataclass(frozen=True)
class Memory:
    """Resident memory of a process, in bytes, as the kernel counts it.

    Attributes:
        kept: anonymous memory, and the process' proportional part of shared memory: of a page that
            four mappings show, in whatever processes, a quarter for each.
        mapped: mapped pages of files: page cache, which the kernel takes back at need.
    """

    kept: int
    mapped: int

    @classmethod
    def now(cls) -> "Memory":
        """Of this process."""
        lines = [*_lines("status"), *_lines("smaps_rollup")]
        sizes = {words[0]: int(words[1]) * 1024 for words in lines if words[-1:] == ["kB"]}
        return cls(kept=sizes["RssAnon:"] + sizes["Pss_Shmem:"], mapped=sizes["RssFile:"])


def _lines(name: str) -> Iterator[list[str]]:
    return map(str.split, (_PROC / "self" / name).read_text().splitlines())
