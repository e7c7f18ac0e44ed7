"""Open MPI's variables: workers started by `mpirun`, which only starts them here."""

from __future__ import annotations

from collections.abc import Mapping

from tfddl.cluster.cluster import Cluster, block_addresses
from tfddl.cluster.variables import consecutive_ports, read_int
from tfddl.errors import ClusterError

_RANK = "OMPI_COMM_WORLD_RANK"
_SIZE = "OMPI_COMM_WORLD_SIZE"
_LOCAL_RANK = "OMPI_COMM_WORLD_LOCAL_RANK"
_LOCAL_SIZE = "OMPI_COMM_WORLD_LOCAL_SIZE"
_HOSTS = "TFDDL_HOSTS"


def parse(environ: Mapping[str, str]) -> Cluster | None:
    """Reads the cluster of an `mpirun`.

    Open MPI tells a process its numbers but not the others' hosts. On one host they are not
    needed. On several, TFDDL_HOSTS names them with their slots in rank order
    (`mpirun -x TFDDL_HOSTS=hostA:2,hostB:2 …`). Ports are TFDDL_PORT (12345 if not set) plus
    the local rank.

    Returns:
        None if Open MPI didn't start this process.

    Raises:
        ClusterError: the variables don't agree with each other, or TFDDL_HOSTS is missing.
    """
    if _RANK not in environ and _SIZE not in environ:
        return None
    rank, size = read_int(environ, _RANK), read_int(environ, _SIZE)
    local_rank, local_size = read_int(environ, _LOCAL_RANK), read_int(environ, _LOCAL_SIZE)
    if size == 1:
        return Cluster.alone()
    if environ.get(_HOSTS):
        hosts, slots = _hosts_and_slots(environ[_HOSTS])
    elif local_size == size:
        hosts, slots = ["127.0.0.1"], [size]
    else:
        raise ClusterError(
            f"Open MPI started {size} workers, {local_size} of them on this host, and doesn't say "
            f"on which hosts the others are; {_HOSTS} must name them all in rank order. HINT: "
            f"mpirun -x {_HOSTS}=hostA:{local_size},hostB:{size - local_size} … (host:slots)"
        )
    if sum(slots) != size:
        raise ClusterError(
            f"{_HOSTS} is {environ[_HOSTS]!r}, {sum(slots)} slots, but {_SIZE} is {size}; "
            "they must be equal"
        )
    addresses = block_addresses(hosts, slots, consecutive_ports(environ, max(slots)))
    try:
        cluster = Cluster(addresses=addresses, rank=rank)
    except ClusterError as error:
        raise ClusterError(f"Open MPI's variables: {error}") from None
    if cluster.local_rank != local_rank:
        raise ClusterError(
            f"{_LOCAL_RANK} is {local_rank} for rank {rank}, but {cluster.local_rank} follows from "
            f"the hosts {environ.get(_HOSTS) or hosts[0]!r}. HINT: mpirun --map-by slot fills one "
            f"host after the other, in the order of {_HOSTS}"
        )
    return cluster


def _hosts_and_slots(text: str) -> tuple[list[str], list[int]]:
    hosts, slots = [], []
    for entry in text.split(","):
        host, _, count = entry.strip().rpartition(":")
        if not host or not (count.isascii() and count.isdecimal()) or int(count) < 1:
            raise ClusterError(
                f'{_HOSTS} is {text!r}, and {entry!r} is not "host:slots"; expected '
                '"hostA:2,hostB:2"'
            )
        hosts.append(host.strip("[]"))
        slots.append(int(count))
    return hosts, slots
