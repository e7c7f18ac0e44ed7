"""Cases about what a worker reads and keeps."""

from pathlib import Path

from tfddl.bench.reading import Reading, Way, read_share


def keep(directory: str) -> dict[Way, Reading]:
    """What a worker keeps in each way, after an epoch in which TensorFlow has got its own."""
    read_share(Path(directory), Way.GLOBAL, batch_size=16)
    return {way: read_share(Path(directory), way, batch_size=16) for way in Way}
