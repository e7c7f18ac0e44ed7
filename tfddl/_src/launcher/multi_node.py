"""Makes one job of several `tfddlrun`s, one on each host.

Every `tfddlrun` starts the workers of its own host. Before that all exchange the addresses of their
workers, by the rendezvous that workers use too: all workers then get one TF_CONFIG and one secret.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tfddl import __version__
from tfddl._src import rendezvous
from tfddl._src.cluster import NodeRank, PartialCluster, join_address
from tfddl._src.cluster.cluster import is_loopback
from tfddl._src.cluster.ports import hold_ports
from tfddl._src.launcher.hosts import MAX_LAUNCHED_WORKERS
from tfddl._src.launcher.interfaces import identity, interface_of
from tfddl._src.launcher.output import Console
from tfddl._src.launcher.plan import LOOPBACK, HostAllocation
from tfddl._src.launcher.signals import Interrupted, Signals
from tfddl._src.rendezvous import Rendezvous
from tfddl.errors import LaunchError, TfddlError

NODE_TIMEOUT_S = 600.0
"""How long nodes wait for each other, by default (`--start-timeout`)."""

_LOOK_S = 0.02
_LAST_PORT = 65535


@dataclass(frozen=True)
class NodeOptions:
    """Which of the job's nodes this is, and how it finds the others.

    Attributes:
        node: its rank among the nodes, of which there are at least 2, and the address of node 0.
        interfaces: the first of these that this host has is where its workers are reached; none:
            by the address of this host in its connection to node 0.
        timeout_s: seconds that the nodes wait for each other, above 0.

    Raises:
        LaunchError: there is no other node, or the address of node 0 isn't given.
    """

    node: NodeRank
    interfaces: tuple[str, ...] = ()
    timeout_s: float = NODE_TIMEOUT_S

    def __post_init__(self) -> None:
        node = self.node
        if node.num_nodes < 2:
            raise LaunchError(f"the number of nodes is {node.num_nodes}; it must be at least 2")
        if node.master is None:
            raise LaunchError(
                f"this is node {node.node_rank} of {node.num_nodes} ({node.source}), and the "
                "address of node 0 isn't given. HINT: --master-addr HOST[:PORT], the same on all "
                "nodes, or MASTER_ADDR in the environment"
            )
        if not self.timeout_s > 0:
            raise LaunchError(f"--start-timeout is {self.timeout_s}; it must be above 0 seconds")


@dataclass(frozen=True)
class JoinedNodes:
    """What the nodes have agreed on.

    Attributes:
        allocations: the nodes' parts in the job, in the order of their ranks; `host` is "" for this
            one.
        secret: the job's.
    """

    allocations: tuple[HostAllocation, ...]
    secret: str


@dataclass(frozen=True)
class NodeFacts:
    """What a node sends to the others.

    Attributes:
        version: of tfddl.
        ports: one for each of its workers.
        address: where its workers are reached, by `--network-interface`; "" where that isn't
            given.
        identity: tells machines apart, see `interfaces.identity`.
    """

    version: str
    ports: tuple[int, ...]
    address: str
    identity: str

    @classmethod
    def read(cls, fields: Mapping[str, Any], *, node_rank: int) -> NodeFacts:
        """Checks what another node has sent.

        Raises:
            LaunchError: these are no such facts, as of another version of tfddl.
        """
        version, ports = fields.get("version"), fields.get("ports")
        if version != __version__:
            raise LaunchError(
                f"node {node_rank} has tfddl {version}, but this one {__version__}. HINT: install "
                "the same on all nodes"
            )
        texts = [fields.get(name) for name in ("address", "identity")]
        if not (
            isinstance(ports, list | tuple)
            and 1 <= len(ports) <= MAX_LAUNCHED_WORKERS
            and all(type(port) is int and 0 < port <= _LAST_PORT for port in ports)
            and all(isinstance(text, str) for text in texts)
        ):
            raise LaunchError(
                f"node {node_rank} has sent something that is not a node's ports, address and "
                "identity. HINT: start it by tfddlrun, as this one"
            )
        return cls(str(version), tuple(ports), *map(str, texts))


def join_nodes(
    options: NodeOptions,
    *,
    num_workers: int,
    secret: str | None,
    console: Console,
    signals: Signals,
) -> JoinedNodes:
    """Waits for all nodes, and makes one job of their workers. All nodes must call it together.

    Args:
        options: which node this is.
        num_workers: how many workers it has.
        secret: the job's, which the nodes know each other by; None to take what node 0 chooses.
        console: shows which nodes are waited for.
        signals: interrupts the waiting.

    Raises:
        LaunchError: not all nodes have arrived in time, or they can't become one job.
        Interrupted: a signal came that ends the job.
    """
    node = options.node
    assert node.master is not None
    interface, address = interface_of(options.interfaces) if options.interfaces else ("", "")
    where = f"{node.master} ({node.source})" if node.source else node.master
    console.say(f"node {node.node_rank} of {node.num_nodes}, rendezvous at {where}")
    # Held until the others know them, two launchers on one host can't choose the same.
    with hold_ports(num_workers, excluded=[int(node.master.rpartition(":")[2])]) as ports:
        own = NodeFacts(
            version=__version__,
            ports=ports,
            address=address,
            identity=identity(),
        )
        joined = _join(options, own, secret=secret, console=console, signals=signals)
    found = [NodeFacts.read(fields, node_rank=rank) for rank, fields in enumerate(joined.metadata)]
    hosts = [address.rpartition(":")[0].strip("[]") for address in joined.cluster.addresses]
    allocations = make_allocations(found, hosts, node_rank=node.node_rank, interface=interface)
    ranks = _ranks_of_allocations(allocations)[node.node_rank]
    total = sum(len(allocation.ports) for allocation in allocations)
    console.say(f"all {node.num_nodes} nodes have joined; rank {ranks} of {total} here")
    return JoinedNodes(allocations=allocations, secret=secret or joined.secret.hex())


def make_allocations(
    facts: Sequence[NodeFacts], hosts: Sequence[str], *, node_rank: int, interface: str = ""
) -> tuple[HostAllocation, ...]:
    """The nodes' parts in one job: pure.

    Args:
        facts: of each node.
        hosts: what each is reached by, where its facts don't say.
        node_rank: which of them is this one.
        interface: of this node, the one that its workers are to use.

    Raises:
        LaunchError: there are too many workers, or one node can't be reached by the others.
    """
    total = sum(len(node.ports) for node in facts)
    if total > MAX_LAUNCHED_WORKERS:
        raise LaunchError(
            f"the {len(facts)} nodes have {total} workers; at most {MAX_LAUNCHED_WORKERS} can "
            "take part"
        )
    addresses = _addresses(facts, hosts)
    return tuple(
        HostAllocation(
            host="" if rank == node_rank else f"node {rank}",
            address=addresses[node.identity],
            ports=node.ports,
            interface=interface if rank == node_rank else "",
        )
        for rank, node in enumerate(facts)
    )


def _addresses(facts: Sequence[NodeFacts], hosts: Sequence[str]) -> dict[str, str]:
    """By identity, the address of each machine, which all nodes can reach."""
    # Two launchers on one machine name it alike, so that their workers know they share it.
    addresses: dict[str, str] = {}
    for node, host in zip(facts, hosts, strict=True):
        addresses.setdefault(node.identity, node.address or host)
    unreachable = [
        rank
        for rank, node in enumerate(facts)
        if is_loopback(join_address(addresses[node.identity], node.ports[0]))
    ]
    if len(addresses) == 1 and unreachable:
        return dict.fromkeys(addresses, LOOPBACK)
    if unreachable:
        rank = unreachable[0]
        raise LaunchError(
            f"node {rank} is reached at {addresses[facts[rank].identity]}, which other hosts can't "
            "reach. HINT: --master-addr has to be an address of node 0 that all nodes know; or "
            "--network-interface"
        )
    return addresses


def _ranks_of_allocations(allocations: Sequence[HostAllocation]) -> list[str]:
    """The ranks of the workers of each allocation, to be read by people."""
    texts, first = [], 0
    for allocation in allocations:
        last = first + len(allocation.ports) - 1
        texts.append(str(first) if first == last else f"{first}-{last}")
        first = last + 1
    return texts


def _join(
    options: NodeOptions,
    own: NodeFacts,
    *,
    secret: str | None,
    console: Console,
    signals: Signals,
) -> Rendezvous:
    """What the nodes have sent each other; the connection is closed.

    The rendezvous waits in a thread, so that signals are noticed here. It is a daemon thread, to
    end with the process where a signal ends the job.
    """
    results: queue.Queue[Rendezvous | BaseException] = queue.Queue()

    def work() -> None:
        try:
            results.put(_connect(options, own, secret=secret))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            results.put(error)

    # It ends before workers are started, which takes a process without other threads.
    thread = threading.Thread(target=work, name="tfddlrun-rendezvous", daemon=True)
    with _reports() as reports:
        try:
            thread.start()
        except RuntimeError as error:
            raise LaunchError(
                f"can't wait for the other nodes: {error}. HINT: ulimit -u, or the limit of "
                "processes and threads of a container (pids.max)"
            ) from error
        while thread.is_alive() or not reports.empty():
            while not reports.empty():
                console.say(reports.get())
            # By polling: a thread can't be waited for together with a descriptor.
            if not signals.sleep(_LOOK_S):
                raise Interrupted
    joined = results.get()
    if isinstance(joined, TfddlError):
        raise LaunchError(
            f"the rendezvous of the nodes failed (ranks are nodes): {joined}"
        ) from joined
    if isinstance(joined, BaseException):
        raise joined
    joined.close()
    return joined


def _connect(options: NodeOptions, own: NodeFacts, *, secret: str | None) -> Rendezvous:
    """Meets the other nodes, each of which is a rank of the rendezvous."""
    node = options.node
    cluster = PartialCluster(
        rank=node.node_rank,
        size=node.num_nodes,
        master=str(node.master),
        job=node.job,
        source=node.source,
    )
    return rendezvous.join(
        cluster,
        secret=bytes.fromhex(secret or ""),
        metadata=dataclasses.asdict(own),
        timeout_s=options.timeout_s,
    )


@contextlib.contextmanager
def _reports() -> Iterator[queue.Queue[str]]:
    """What the rendezvous logs, as it is logged."""
    texts: queue.Queue[str] = queue.Queue()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.put(record.getMessage())

    log, handler = logging.getLogger("tfddl"), Handler(logging.WARNING)
    log.addHandler(handler)
    try:
        yield texts
    finally:
        log.removeHandler(handler)
