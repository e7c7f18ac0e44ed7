"""The workers of a job: frozen, checked at construction."""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tfddl._src.cluster.parsing import MAX_PORT, quote
from tfddl.errors import ClusterError

_MAX_HOST_CHARS = 255  # RFC 1035, 2.3.4
# Underscores aren't allowed in host names (RFC 952), and are common in those of containers.
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\]")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@dataclass(frozen=True)
class Cluster:
    """All workers of a job, and which of them this process is.

    Attributes:
        addresses: "host:port" of every worker, in rank order; an IPv6 host stands in brackets,
            "[::1]:12345". Empty for a single worker, which needs no server.
        rank: this worker, in [0, size).
        job: name of the job, as whatever started it gives it (a Slurm step, a PMIx namespace,
            torchrun's run id); tells it from other jobs of the same addresses. "" if it has none.

    Raises:
        ClusterError: an address has no host, no port, or is repeated; or the rank is out of range.
    """

    addresses: tuple[str, ...]
    rank: int
    job: str = ""

    def __post_init__(self) -> None:
        first_ranks: dict[tuple[str, str], int] = {}
        for rank, address in enumerate(self.addresses):
            check_address(address, f"the address of rank {rank}")
            host, _, port = address.rpartition(":")
            first = first_ranks.setdefault((_normalize_host(host), port), rank)
            if first != rank:
                also = self.addresses[first]
                spelled = "" if also == address else f" (as {also!r})"
                raise ClusterError(
                    f"the address {address!r} is given twice{spelled}, for ranks {first} and "
                    f"{rank}; every worker needs its own. HINT: several workers on one host take "
                    "different ports"
                )
        if not isinstance(self.rank, int) or isinstance(self.rank, bool):
            raise ClusterError(f"rank is {self.rank!r}; it must be an integer")
        if not 0 <= self.rank < self.size:
            raise ClusterError(
                f"rank is {self.rank} among {self.size} workers; it must be 0..{self.size - 1}"
            )

    @classmethod
    def single_worker(cls) -> Cluster:
        """The cluster of a script that was started as one process: no server."""
        return cls(addresses=(), rank=0)

    @property
    def size(self) -> int:
        """Number of workers."""
        return max(1, len(self.addresses))

    @property
    def host(self) -> str:
        """The host of this worker, spelled as in `hosts`."""
        return self.hosts_by_rank[self.rank]

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts, each once, in the order of their first ranks.

        One host has one spelling: names are in lower case, IPv6 addresses in their short form
        without brackets.
        """
        return tuple(dict.fromkeys(self.hosts_by_rank))

    @property
    def local_rank(self) -> int:
        """This worker's index among those of its host."""
        return self.hosts_by_rank[: self.rank].count(self.host)

    @property
    def local_size(self) -> int:
        """Number of workers on this worker's host."""
        return self.hosts_by_rank.count(self.host)

    @functools.cached_property
    def ranks_of_hosts(self) -> tuple[tuple[int, ...], ...]:
        """The ranks on each host, ascending, in the order of `hosts`."""
        found: dict[str, list[int]] = {}
        for rank, host in enumerate(self.hosts_by_rank):
            found.setdefault(host, []).append(rank)
        return tuple(map(tuple, found.values()))

    @property
    def cross_rank(self) -> int:
        """This host's index among those that have a worker of this local rank, as in Horovod."""
        return self._hosts_with_this_local_rank.index(self.host)

    @property
    def cross_size(self) -> int:
        """Number of hosts that have a worker of this local rank."""
        return len(self._hosts_with_this_local_rank)

    @functools.cached_property
    def hosts_by_rank(self) -> tuple[str, ...]:
        """The host of each worker, in rank order, spelled as in `hosts`."""
        if not self.addresses:
            return ("localhost",)
        return tuple(_normalize_host(address.rpartition(":")[0]) for address in self.addresses)

    @property
    def _hosts_with_this_local_rank(self) -> tuple[str, ...]:
        sizes = zip(self.hosts, map(len, self.ranks_of_hosts), strict=True)
        local_rank = self.local_rank
        return tuple(host for host, size in sizes if size > local_rank)


@dataclass(frozen=True)
class PartialCluster:
    """A worker that knows its rank and the address of rank 0, not the other addresses.

    MPI's launchers, torchrun and similar ones say no more. `rendezvous.join` collects the addresses
    of all workers at rank 0, and returns a `Cluster`.

    Attributes:
        rank: this worker, in [0, size).
        size: number of workers, at least 2.
        master: "host:port" at which the others reach rank 0.
        local_rank: this worker's index among those of its host; None if its launcher doesn't say.
        local_size: number of workers on its host; None if the launcher doesn't say.
        job: see `Cluster`.
        source: the variables that this was read from, for errors: "RANK, WORLD_SIZE, MASTER_ADDR".

    Raises:
        ClusterError: a number is out of its range, or `master` is no address.
    """

    rank: int
    size: int
    master: str
    local_rank: int | None = None
    local_size: int | None = None
    job: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        check_address(self.master, "the address of rank 0")
        if self.size < 2:
            raise ClusterError(f"size is {self.size} in {self.source}; it must be at least 2")
        if not 0 <= self.rank < self.size:
            raise ClusterError(
                f"rank is {self.rank} among {self.size} workers in {self.source}; it must be "
                f"0..{self.size - 1}"
            )
        local_size = self.size if self.local_size is None else self.local_size
        if local_size > self.size or not 0 <= (self.local_rank or 0) < local_size:
            raise ClusterError(
                f"local rank is {self.local_rank} among {self.local_size} workers of a host, of "
                f"{self.size} in all, in {self.source}; they contradict each other"
            )


def block_addresses(
    hosts: Sequence[str], tasks_per_host: Sequence[int], ports: Sequence[int]
) -> tuple[str, ...]:
    """The addresses of workers whose ranks fill one host after the other.

    Args:
        hosts: names or IP addresses in rank order; IPv6 without brackets.
        tasks_per_host: number of workers of each host.
        ports: the port of each local rank, the same on all hosts.

    Returns:
        "host:port" in rank order.
    """
    return tuple(
        join_address(host, ports[local_rank])
        for host, tasks in zip(hosts, tasks_per_host, strict=True)
        for local_rank in range(tasks)
    )


def join_address(host: str, port: int) -> str:
    """Writes "host:port", with an IPv6 host in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Whether "host:port" is a loopback address, which means another host on each host."""
    host = _normalize_host(address.rpartition(":")[0])
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _normalize_host(host: str) -> str:
    """The one spelling of a host."""
    # Names are case-insensitive (RFC 4343); IPv6 has many spellings, and a short form (RFC 5952).
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host.strip("[]")))
        except ValueError:
            return host.strip("[]").lower()
    return host.lower()


def check_address(address: object, what: str) -> None:
    """Checks that a value is "host:port".

    Args:
        address: the value.
        what: what it is, for errors: "the address of rank 0".

    Raises:
        ClusterError: it isn't; the message quotes it.
    """
    expected = 'expected "host:port", for instance "10.0.0.1:12345" or "[::1]:12345"'
    if not isinstance(address, str):
        raise ClusterError(f"{what} is {quote(address)}; {expected}")
    host, colon, port = address.rpartition(":")
    if not colon or (address.startswith("[") and address.endswith("]")):
        raise ClusterError(f"{what} is {quote(address)}, without a port; {expected}")
    if not host:
        raise ClusterError(f"{what} is {quote(address)}, without a host; {expected}")
    if len(host) > _MAX_HOST_CHARS or not _HOST.fullmatch(host):
        raise ClusterError(
            f"{what} is {quote(address)}, and {quote(host)} is no host name; {expected}"
        )
    # Not "012345", which some parsers take for an octal number.
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= MAX_PORT:
        raise ClusterError(
            f"{what} is {quote(address)}; its port must be a number in 1..{MAX_PORT}, without "
            "leading zeros"
        )
