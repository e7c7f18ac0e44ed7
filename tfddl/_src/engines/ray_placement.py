"""Where Ray places workers: the wait for resources, a look at each place, what a rank needs."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from tfddl import __version__
from tfddl._src import rendezvous
from tfddl._src.cluster import SECRET, START_TIMEOUT, Cluster, join_address
from tfddl._src.cluster.environments import tf_config
from tfddl._src.cluster.ports import free_ports
from tfddl._src.engines.ray_options import import_ray
from tfddl._src.launcher.environment import RESTARTS
from tfddl._src.launcher.plan import DEFAULTS
from tfddl.errors import LaunchError

_LOG = logging.getLogger("tfddl")

# After how long a wait for resources is told.
_SAY_S = 5.0


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a place says of itself: its host's address, free ports, and version of tfddl."""

    host: str
    ports: tuple[int, ...]
    version: str


def probe_host(num_ports: int) -> Probe:
    ray = import_ray()
    return Probe(ray.util.get_node_ip_address(), free_ports(num_ports), __version__)


def worker_environments(
    probes: Sequence[Probe],
    *,
    timeout_s: float | None,
    extra: Mapping[str, str],
    num_restarts: int = 0,
    version: str = __version__,
) -> list[dict[str, str]]:
    """The environment variables of each rank of a new job.

    Args:
        probes: the place of each rank, in rank order; each offers as many ports as there are ranks.
        timeout_s: seconds that workers wait for each other in `tfddl.init()`; None leaves it to
            them.
        extra: variables for all ranks.
        num_restarts: how often the job has started again.
        version: the driver's version of tfddl.

    Raises:
        LaunchError: a place has another version.
    """
    for rank, probe in enumerate(probes):
        if probe.version != version:
            raise LaunchError(
                f"rank {rank} on {probe.host} has tfddl {probe.version}, but the driver "
                f"{version}. HINT: install the same on all hosts"
            )
    # A host's ports are all chosen by one of its probes: two could choose the same at the same
    # time.
    ports = {probe.host: list(probe.ports) for probe in probes}
    addresses = tuple(join_address(probe.host, ports[probe.host].pop()) for probe in probes)
    common = {**DEFAULTS, RESTARTS: str(num_restarts), **extra}
    common[SECRET] = secrets.token_hex(rendezvous.SECRET_BYTES)
    if timeout_s is not None:
        common[START_TIMEOUT] = f"{timeout_s:g}"
    return [
        {**common, tf_config.VARIABLE: tf_config.render(Cluster(addresses, rank))}
        for rank in range(len(probes))
    ]


def await_group(
    group: Any, bundles: Sequence[Mapping[str, float]], strategy: str, *, wait_s: float
) -> None:
    """Waits until Ray has the resources of a placement group, and says so after 5 s.

    Args:
        group: a `ray.util.placement_group.PlacementGroup` that has just been made.
        bundles: of which bundles, all alike.
        strategy: by which strategy.
        wait_s: seconds to wait.

    Raises:
        LaunchError: it hasn't had them within that time.
    """
    if group.wait(min(wait_s, _SAY_S)):
        return
    wanted = f"{len(bundles)} bundles of {bundles[0]} ({strategy})"
    _LOG.warning("waiting for Ray: %s; free are %s", wanted, _free())
    if wait_s <= _SAY_S or not group.wait(wait_s - _SAY_S):
        raise LaunchError(
            f"Ray has not found {wanted} within {wait_s:g} s; free are {_free()}. HINT: "
            "fewer workers, end what uses Ray's resources (ray status), or a longer "
            "placement_group_timeout_s"
        )


def _free() -> dict[str, float]:
    free = import_ray().available_resources()
    return {name: free.get(name, 0.0) for name in ("CPU", "GPU")}
