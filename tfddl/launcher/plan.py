"""What each worker process is started with: pure, nothing is started here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tfddl.cluster import Cluster, join_address, tf_config
from tfddl.launcher import horovod
from tfddl.progress import Board

LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"

_HOST = "127.0.0.1"

_DEFAULTS = MappingProxyType(
    {
        # Lines must come as they are printed, not by the 8 KiB, through a pipe.
        "PYTHONUNBUFFERED": "1",
        # Each worker's start would fill a screen; 2 leaves TensorFlow's errors.
        LOG_LEVEL: "2",
    }
)


@dataclass(frozen=True)
class ProcessPlan:
    """One process to be started.

    Attributes:
        rank: its rank.
        argv: the command and its arguments.
        environment: the whole environment it gets.
        descriptors: what it inherits besides the standard ones.
        board: where it writes how far it has come, or None.
    """

    rank: int
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    descriptors: tuple[int, ...] = ()
    board: Board | None = None


def plan_processes(
    command: Sequence[str],
    *,
    ports: Sequence[int],
    environment: Mapping[str, str],
    as_horovod: bool = False,
) -> tuple[ProcessPlan, ...]:
    """Plans the workers of a job on this machine.

    Args:
        command: what every worker runs, with its arguments; not touched.
        ports: the port of each worker, in rank order.
        environment: what the workers inherit. TF_CONFIG is replaced; what else a worker wants is
            added only where the user has set nothing.
        as_horovod: whether `import horovod` finds tfddl there.

    Returns:
        One plan per port, in rank order.

    Raises:
        ClusterError: the ports are no ports, or repeat.
    """
    addresses = tuple(join_address(_HOST, port) for port in ports)

    def variables(cluster: Cluster) -> Mapping[str, str]:
        return horovod.variables(cluster, environment) if as_horovod else {}

    return tuple(
        ProcessPlan(
            rank=cluster.rank,
            argv=tuple(command),
            environment=MappingProxyType(
                {
                    **_DEFAULTS,
                    **environment,
                    **variables(cluster),
                    tf_config.VARIABLE: tf_config.render(cluster),
                }
            ),
        )
        for cluster in (Cluster(addresses, rank) for rank in range(len(addresses)))
    )
