"""The address of rank 0, found through MPI where mpi4py is installed.

MPI is used for this exchange only, and finalized at once: MPI_Finalize is collective, and a rank
that died later would leave the others waiting in it. A script that uses MPI itself imports
`mpi4py.MPI` before `tfddl.init()`: then MPI is left as it is.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import secrets
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tfddl._src.cluster.cluster import join_address
from tfddl.errors import ClusterError

_MODULE = "mpi4py"
_BYTES = 16
_WAIT_S = 2.0
_MOST_CANDIDATES = 16
_BACKLOG = 4096  # One client per host; the kernel's limit may be lower (net.core.somaxconn).
# Connecting a UDP socket sends nothing, and selects the interface of the default route. The
# addresses are reserved for documentation (RFC 5737, RFC 3849).
_OUTSIDE = ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1"))
_SIOCGIFADDR = 0x8915  # ioctl(2): the IPv4 address of an interface; see netdevice(7).

_HINT = "HINT: mpirun -x TFDDL_MASTER=hostA …, the host of rank 0, needs no MPI in the workers"


@functools.cache  # MPI can't be initialized twice in a process; `init` may be called again.
def exchange(size: int, *, port: int, tries: bool, source: str) -> str | None:
    """Finds an address of rank 0 that all hosts reach. All processes must call it together.

    Args:
        size: number of processes, from the launcher's variables.
        port: at which rank 0 will listen; 0 for a free one.
        tries: whether this process tries the addresses; one process of each host is enough.
        source: the launcher's variables, for errors.

    Returns:
        "host:port", at which nothing listens on return; None where mpi4py isn't installed.

    Raises:
        ClusterError: MPI can't be loaded, has another number of processes, or was finalized before;
            or no address of rank 0 is reached by all hosts.
    """
    if importlib.util.find_spec(_MODULE) is None:
        return None
    mpi = _load()
    if mpi.Is_finalized():
        raise ClusterError(
            "MPI was ended in this process before tfddl could find rank 0 through it. "
            f"HINT: call tfddl.init() before MPI.Finalize(). {_HINT}"
        )
    is_ours = not mpi.Is_initialized()
    if is_ours:
        mpi.Init_thread(mpi.THREAD_FUNNELED)
    try:
        if mpi.COMM_WORLD.size != size:
            raise ClusterError(
                f"by {source} there are {size} workers, but {mpi.COMM_WORLD.size} by MPI. They are "
                "left from another mpirun, or mpi4py is built for another MPI than this mpirun's "
                f"({mpi.Get_library_version().partition(chr(10))[0][:80]}). {_HINT}"
            )
        return _exchange(mpi, port, tries=tries)
    finally:
        if is_ours:
            mpi.Finalize()


def _load() -> Any:
    """`mpi4py.MPI`, which would initialize MPI when it is imported."""
    if f"{_MODULE}.MPI" not in sys.modules:
        settings = importlib.import_module(_MODULE).rc
        settings.initialize = settings.finalize = False
    try:
        return importlib.import_module(f"{_MODULE}.MPI")
    except (ImportError, RuntimeError, OSError) as error:
        raise ClusterError(f"mpi4py can't load MPI: {str(error)[:300]}. {_HINT}") from error


def _exchange(mpi: Any, port: int, *, tries: bool) -> str:
    """All ranks try the addresses of rank 0, one after the other, until all reach one."""
    comm = mpi.COMM_WORLD
    with contextlib.ExitStack() as stack:
        server, offer = None, None
        if comm.rank == 0:
            try:
                server = stack.enter_context(_listen(port))
                offer = _Offer(_candidates(), server.getsockname()[1], secrets.token_bytes(_BYTES))
            except OSError as error:
                offer = _Offer((), port, b"", str(error))
        offer = comm.bcast(offer, root=0)
        num_trying = comm.allreduce(int(tries), op=mpi.SUM)
        for host in offer.hosts:
            reached = tries and _try_connect(host, offer.port, offer.nonce)
            is_reached = comm.allreduce(int(reached), op=mpi.SUM) == num_trying
            # Another program may have answered: rank 0 counts the connections with its nonce.
            if server is not None:
                is_reached = is_reached and _count_clients(server, num_trying, offer.nonce)
            if comm.bcast(is_reached, root=0):
                return join_address(host, offer.port)
    if offer.error:
        raise ClusterError(f"rank 0 can't listen on port {port}: {offer.error}. {_HINT}")
    raise ClusterError(
        f"no address of rank 0 ({', '.join(offer.hosts) or 'it has none'}; port {offer.port}) can "
        f"be reached from every host; is there a firewall? {_HINT}, by a name that all can reach"
    )


@dataclass(frozen=True)
class _Offer:
    """Where rank 0 listens, and the nonce by which it knows its clients."""

    hosts: tuple[str, ...]
    port: int
    nonce: bytes
    error: str = ""


def _listen(port: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    return socket.create_server(("", port), family=family, backlog=_BACKLOG, dualstack_ipv6=dual)


def _try_connect(host: str, port: int, nonce: bytes) -> bool:
    """Whether something listens there; sends it the nonce."""
    # Rank 0 accepts later: meanwhile the kernel queues connections and what they have sent.
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, port), timeout=_WAIT_S) as connection,
    ):
        connection.sendall(nonce)
        return True
    return False


def _count_clients(server: socket.socket, number: int, nonce: bytes) -> bool:
    """Whether so many clients with the nonce have connected."""
    end_s = time.monotonic() + _WAIT_S
    while number and (left_s := end_s - time.monotonic()) > 0:
        server.settimeout(left_s)
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(left_s)
                number -= connection.recv(len(nonce), socket.MSG_WAITALL) == nonce
                # Closing with SO_LINGER 0 resets the connection. Without it the port would stay in
                # TIME_WAIT for a minute, and rank 0 couldn't listen there.
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    return number == 0


def _candidates() -> tuple[str, ...]:
    """The addresses of this host, most likely ones first."""
    found = [*_outgoing(), *_of_name(), *_of_interfaces()]
    kept = dict.fromkeys(
        host for host in found if not host.startswith(("127.", "fe80:")) and host != "::1"
    )
    return tuple(kept)[:_MOST_CANDIDATES]


def _outgoing() -> Sequence[str]:
    found: list[str] = []
    for family, outside in _OUTSIDE:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((outside, 9))
            found.append(str(probe.getsockname()[0]))
    return found


def _of_name() -> Sequence[str]:
    try:
        entries = socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return [str(entry[4][0]) for entry in entries]


def _of_interfaces() -> Sequence[str]:
    """The IPv4 addresses of all interfaces (Linux; elsewhere none)."""
    found: list[str] = []
    with contextlib.suppress(ImportError, OSError, AttributeError):
        fcntl = importlib.import_module("fcntl")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # no IPv4 address
                    request = struct.pack("256s", name.encode()[:15])
                    answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                    found.append(socket.inet_ntoa(answer[20:24]))
    return found
