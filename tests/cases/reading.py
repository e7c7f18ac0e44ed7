"""Cases about what a worker reads and keeps."""

from pathlib import Path

from tfddl.bench.reading import Reading, Way, read_share


def keep(directory: str) -> dict[Way, Reading]:
    """What a worker keeps in each way."""
    return {way: read_share(Path(directory), way, batch_size=16) for way in Way}
