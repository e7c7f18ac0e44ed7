"""What `tfddl-bench` measures within a job, and what reading costs a worker."""

from pathlib import Path

from tfddl.bench.codec import from_json
from tfddl.bench.collectives import measure_collectives
from tfddl.bench.config import Config, Order
from tfddl.bench.inter_host import measure_stream
from tfddl.bench.progress import Progress
from tfddl.bench.reading import Read, read_shard
from tfddl.bench.results import Results
from tfddl.bench.session import Session, other_collectives
from tfddl.bench.training import measure_training


def measure(config: str) -> tuple[Results, tuple[str, ...], list[str]]:
    """Results of collectives, training and a stream, other transports, and what was said."""
    said: list[str] = []
    session = Session(from_json(Config, config), "by", Progress(said.append))
    results = Results(machines=session.machines, streams=[measure_stream(session)])
    for workload in session.config.workloads:
        results.training += measure_training(session, workload)
    results.collectives = measure_collectives(session)
    results.loads = session.loads()
    return results, other_collectives(), said


def keep(directory: str) -> dict[Order, Read]:
    """What a worker keeps in each order, after an epoch in which TensorFlow has got its own."""
    read_shard(Path(directory), Order.GLOBAL, batch_size=16)
    return {order: read_shard(Path(directory), order, batch_size=16) for order in Order}
