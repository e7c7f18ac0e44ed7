"""What `tfddl-bench` measures within a job, and what reading costs a worker."""

import re
from collections.abc import Iterable
from pathlib import Path

from tests.group import ROOT
from tfddl.bench.collectives import measure_collectives
from tfddl.bench.config import Config
from tfddl.bench.inter_host import measure_stream
from tfddl.bench.reading import ORDERS, read_shard
from tfddl.bench.results import Row
from tfddl.bench.session import Session, other_collectives
from tfddl.bench.step_cost import measure_step_cost
from tfddl.bench.training import measure_training


def undocumented(rows: Iterable[Row]) -> list[str]:
    """Tables and keys of the file of --json that docs/performance.md doesn't describe."""
    found = [name for row in rows for name in (row.table, *row.labels, *row.values)]
    known = re.findall(r"`(\w+)`", (ROOT / "docs" / "performance.md").read_text())
    return [name for name in dict.fromkeys(found) if name not in known]


def measure(config: Config) -> tuple[list[Row], list[str], list[str]]:
    """Rows of a stream, training and collectives, other collectives, and what was said."""
    said: list[str] = []
    session = Session(config, said.append)
    rows = measure_stream(session)
    for workload in config.workloads:
        rows += measure_training(session, workload)
    rows += measure_collectives(session)
    return [*rows, *session.machines()], other_collectives(), said


def step_cost(config: Config) -> list[Row]:
    """Rows of what steps cost by part."""
    session = Session(config, lambda _: None)
    return [row for workload in config.workloads for row in measure_step_cost(session, workload)]


def keep(directory: str) -> dict[str, dict[str, float]]:
    """What a worker keeps in each order, after an epoch in which TensorFlow has got its own."""
    read_shard(Path(directory), "global", batch_size=16)
    return {order: read_shard(Path(directory), order, batch_size=16) for order in ORDERS}
