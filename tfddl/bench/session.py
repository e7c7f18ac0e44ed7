"""What the measurements of one job share."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

import tfddl
from tfddl._src.comm.process_group import Transport
from tfddl._src.launcher.interfaces import machine_id
from tfddl._src.runtime import choose_transport, current
from tfddl.bench.config import Config, Part
from tfddl.bench.machines import processor, work_s
from tfddl.bench.results import Labels, Row
from tfddl.errors import StartError


class Session:
    """A worker that has called `start`. All ranks must make it, and call `machines`, together.

    Attributes:
        process_group: moves the tensors of tfddl.
        by: its label in results.
        compares: whether TensorFlow's strategy is measured, too.
        leaders: the first rank of each host.
    """

    def __init__(self, config: Config, say: Callable[[str], None]) -> None:
        self.config, self._say = config, say
        self.cluster, self.process_group = current().cluster, current().process_group
        self.by = self.process_group.name
        self.compares = config.compare and self.cluster.size > 1
        self.leaders = tuple(ranks[0] for ranks in self.cluster.ranks_of_hosts)
        # Several hosts may be one machine: containers, other names of it.
        here = machine_id(), self.cluster.host, processor(), os.sched_getaffinity(0)
        self._of_ranks = tfddl.allgather_object(here)
        self._cores = self._cores_of(machine_id())
        self._work_s = np.zeros(3)

    def say(self, text: str) -> None:
        """Says what is going on, on rank 0."""
        if self.cluster.rank == 0:
            size = self.cluster.size
            self._say(f"{size} {'workers' if size > 1 else 'worker'}, {self.by}, {text}")

    @contextlib.contextmanager
    def watching_load(self) -> Iterator[None]:
        """Notes what this worker's machine does meanwhile."""
        before_s = work_s(self._cores)
        yield
        self._work_s += work_s(self._cores) - before_s

    def machines(self) -> list[Row]:
        """The machines, and what others than the workers kept busy."""
        work_of_ranks = np.array(tfddl.allgather_object(self._work_s))
        rows = []
        for machine in dict.fromkeys(machine for machine, *_ in self._of_ranks):
            ranks = [r for r, (found, *_) in enumerate(self._of_ranks) if found == machine]
            elapsed_s, busy_s, _ = work_of_ranks[ranks[0]]
            foreign_s = max(0.0, busy_s - work_of_ranks[ranks, 2].sum())
            labels: Labels = {
                "workers": self.cluster.size,
                "by": self.by,
                "hosts": ", ".join(dict.fromkeys(self._of_ranks[rank][1] for rank in ranks)),
                "processor": self._of_ranks[ranks[0]][2],
            }
            values = {"cores": float(len(self._cores_of(machine)))}
            if elapsed_s:
                values["others_busy"] = float(foreign_s / elapsed_s)
            rows.append(Row("machines", labels, values))
        return rows

    def _cores_of(self, machine: str) -> set[int]:
        """Numbers of those that its workers may use."""
        return set().union(*(cores for found, *_, cores in self._of_ranks if found == machine))


def start(config: Config, *, with_strategy: bool = False) -> None:
    """Calls `tfddl.init()`; makes the strategy, which has to come before the first operation."""
    collective = config.collective[0] if config.collective else "auto"
    # Virtual workers need a number that is given. One is what a worker with a core has anyway.
    threads = {"intra_op_threads": 1} if Part.VIRTUAL in config.only else {}
    tfddl.init(collective=collective, between_hosts=config.between_hosts, **threads)
    if with_strategy:
        tfddl.strategy()


def other_collectives() -> list[str]:
    """What `tfddl.init(collective=…)` takes in this job that makes another group than this."""
    cluster, name = current().cluster, current().process_group.name
    num_gpus = len(_physical_devices("GPU"))
    found = []
    for choice in Transport if cluster.size > 1 else ():
        with contextlib.suppress(StartError):
            choose_transport(choice, num_gpus=num_gpus, local_size=cluster.local_size)
            if choice.name != name:
                found.append(choice.value)
    return found


def wait_for_devices() -> None:
    """Returns once a GPU has done what it was given; a CPU has when a call returns.

    What is read back comes last in the GPU's stream. (That has not been run on a GPU;
    `tf.test.experimental.sync_devices` fails where there are several workers.)
    """
    if _physical_devices("GPU"):
        tf.ones([]).numpy()


_physical_devices = functools.cache(tf.config.list_physical_devices)
