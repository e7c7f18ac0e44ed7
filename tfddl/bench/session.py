"""What the measurements of one job share."""

from collections import defaultdict

import keras
import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.cluster import Cluster
from tfddl._src.comm.process_group import ProcessGroup, Transport
from tfddl._src.runtime import choose_transport, current
from tfddl.bench.config import Config, InitOptions
from tfddl.bench.machines import Load, LoadMeter, Machine, foreign_load
from tfddl.bench.progress import Progress
from tfddl.errors import StartError

STRATEGY = "TensorFlow's strategy"
"""The transport in results where tfddl has no part in it."""


class Session:
    """A worker that has called `start`. All ranks must make it, and call `loads`, together.

    Attributes:
        config: what to measure.
        label: the transport in results.
        progress: says what is going on, on rank 0.
        cluster: who takes part.
        process_group: moves the tensors of tfddl.
        compares: whether TensorFlow's strategy is measured, too.
        leaders: the first rank of each host.
        machines: those of the job.
        meters: by part, measure how busy this worker's machine is.
    """

    def __init__(self, config: Config, label: str, progress: Progress) -> None:
        self.config, self.label, self.progress = config, label, progress
        self.cluster: Cluster = current().cluster
        self.process_group: ProcessGroup = current().process_group
        self.compares = config.compare and self.cluster.size > 1
        self.leaders = tuple(ranks[0] for ranks in self.cluster.ranks_of_hosts)
        here = Machine.here(self.cluster.host)
        self.machines = Machine.merged(tfddl.allgather_object(here))
        self._identity = here.identity
        [mine] = [m for m in self.machines if m.identity == here.identity]
        self.meters = defaultdict[str, LoadMeter](lambda: LoadMeter(mine.cores))

    def loads(self) -> list[Load]:
        """What others kept busy, by part and machine."""
        of_ranks = tfddl.allgather_object((self._identity, dict(self.meters)))
        return [
            load
            for part in self.meters
            for load in foreign_load(part, [(name, meters[part]) for name, meters in of_ranks])
        ]


def start(options: InitOptions, *, with_strategy: bool = False) -> str:
    """Calls `tfddl.init()`; returns the name of the transport in results.

    Args:
        options: Its arguments.
        with_strategy: Whether to make the strategy, too: it has to come before the first operation.
    """
    tfddl.init(collective=options.collective, between_hosts=options.between_hosts)
    if with_strategy:
        tfddl.strategy()
    return current().process_group.name


def other_collectives() -> tuple[str, ...]:
    """What `tfddl.init(collective=…)` takes in this job that makes another transport than this."""
    cluster, name = current().cluster, current().process_group.name
    num_gpus = len(tf.config.list_physical_devices("GPU"))
    found = []
    for choice in Transport if cluster.size > 1 else ():
        try:
            choose_transport(choice, num_gpus=num_gpus, local_size=cluster.local_size)
        except StartError:
            continue
        if choice.name != name:
            found.append(choice.value)
    return tuple(found)


def versions() -> dict[str, str]:
    """Of what is measured."""
    modules = {"tensorflow": tf, "keras": keras, "numpy": np}
    return {"tfddl": tfddl.__version__, **{name: m.__version__ for name, m in modules.items()}}
