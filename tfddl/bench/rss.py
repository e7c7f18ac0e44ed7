"""What a process keeps in memory, as the kernel counts it."""

import dataclasses
from pathlib import Path

_STATUS = Path("/proc/self/status")
_SMAPS = Path("/proc/self/smaps_rollup")


@dataclasses.dataclass(frozen=True)
class Rss:
    """Resident memory of a process, in bytes."""

    kept: int
    """Anonymous memory, and the process' proportional part of shared memory: of a page that four
    mappings show, in whatever processes, a quarter for each."""

    mapped: int
    """Mapped pages of files: page cache, which the kernel takes back at need."""

    @classmethod
    def now(cls) -> "Rss":
        """Of this process."""
        resident, proportional = _sizes(_STATUS, "Rss"), _sizes(_SMAPS, "Pss")
        return cls(
            kept=resident["RssAnon:"] + proportional["Pss_Shmem:"], mapped=resident["RssFile:"]
        )


def _sizes(path: Path, kind: str) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) * 1024 for words in lines if words[0].startswith(kind)}
