"""Free ports for TensorFlow's servers, which listen on all interfaces."""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

from tfddl.errors import LaunchError

_FIRST, _LAST = 10000, 65535
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> tuple[int, ...]:
    """Chooses ports that are free on every interface.

    They are released on return, since the servers have to bind them: another program can still take
    one in between.

    Raises:
        LaunchError: there aren't so many.
    """
    with hold_ports(count) as ports:
        return ports


@contextlib.contextmanager
def hold_ports(count: int, *, excluded: Collection[int] = ()) -> Iterator[tuple[int, ...]]:
    """Chooses free ports, and holds them until the end of the `with` statement.

    Args:
        count: how many.
        excluded: ports not to choose.

    Raises:
        LaunchError: there aren't so many.
    """
    chosen: list[int] = []
    with contextlib.ExitStack() as held:
        candidates = [port for port in _candidates() if port not in excluded]
        for port in random.sample(candidates, k=min(len(candidates), 20 * count)):
            if len(chosen) == count:
                break
            try:
                held.enter_context(listen_everywhere(port))
            except OSError:
                continue
            chosen.append(port)
        if len(chosen) < count:
            raise LaunchError(
                f"found {len(chosen)} free ports of the {count} that are needed in "
                f"{_FIRST}..{_LAST}. HINT: end programs that listen there (ss -ltn)"
            )
        yield tuple(chosen)


def is_free(port: int) -> bool:
    """Whether a server could listen on this port, now."""
    try:
        with listen_everywhere(port, after_others=True):
            return True
    except OSError:
        return False


def _candidates() -> list[int]:
    # Outside of the ephemeral range, from which the kernel takes ports for outgoing connections, as
    # those of the workers. One that retries a peer's port can even get that port as its own, and
    # connect to itself (TCP's simultaneous open).
    try:
        low, high = (int(word) for word in _EPHEMERAL.read_text().split())
    except (OSError, ValueError):
        low, high = 32768, 60999  # Linux' default.
    everything = range(_FIRST, _LAST + 1)
    outside = [port for port in everything if not low <= port <= high]
    return outside or list(everything)


def listen_everywhere(port: int, *, after_others: bool = False) -> socket.socket:
    """Listens at a port on all interfaces, IPv6 and IPv4.

    Args:
        port: which one.
        after_others: ignore connections there that have just ended (state TIME_WAIT).

    Raises:
        OSError: another program has it on one of the interfaces.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    holder = socket.socket(family, socket.SOCK_STREAM)
    try:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(after_others))
        if family == socket.AF_INET6:
            holder.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        holder.bind(("", port))
        holder.listen(1)
    except OSError:
        holder.close()
        raise
    return holder
