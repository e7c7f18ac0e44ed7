"""What a process keeps in memory, as the kernel counts it."""

import dataclasses
from pathlib import Path

_STATUS = Path("/proc/self/status")
_SHARES = Path("/proc/self/smaps_rollup")


@dataclasses.dataclass(frozen=True)
class Usage:
    """Resident memory of a process, in bytes."""

    kept: int
    """Anonymous memory, and the process' part of what it shares with others: a page that four
    places show, here or there, counts a quarter in each."""

    mapped: int
    """Pages of files that it has mapped: the page cache, which the kernel takes back at need."""

    @classmethod
    def now(cls) -> "Usage":
        """Of this process."""
        resident, shares = _sizes(_STATUS, "Rss"), _sizes(_SHARES, "Pss")
        return cls(kept=resident["RssAnon:"] + shares["Pss_Shmem:"], mapped=resident["RssFile:"])


def _sizes(path: Path, kind: str) -> dict[str, int]:
    """What the kernel tells of one kind, in bytes."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) * 1024 for words in lines if words[0].startswith(kind)}
