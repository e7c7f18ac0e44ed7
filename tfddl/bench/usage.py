"""What a process keeps in memory, as the kernel counts it."""

import dataclasses
from pathlib import Path

_STATUS = Path("/proc/self/status")


@dataclasses.dataclass(frozen=True)
class Usage:
    """Resident memory of a process, in bytes."""

    kept: int
    """Anonymous and shared memory: what the process itself holds."""

    mapped: int
    """Pages of files that it has mapped: the page cache, which the kernel takes back at need."""

    @classmethod
    def now(cls) -> "Usage":
        """Of this process."""
        lines = (line.split() for line in _STATUS.read_text().splitlines())
        found = {words[0]: int(words[1]) * 1024 for words in lines if words[0].startswith("Rss")}
        return cls(kept=found["RssAnon:"] + found["RssShmem:"], mapped=found["RssFile:"])
