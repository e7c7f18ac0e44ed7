"""This host's network interfaces, and what names resolve to."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from tfddl.errors import LaunchError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_SIOCGIFFLAGS, _SIOCGIFADDR = 0x8913, 0x8915
_IFF_UP = 1
_IF_INET6 = Path("/proc/net/if_inet6")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def addresses_by_interface() -> dict[str, tuple[Address, ...]]:
    """The addresses of each interface that is up, IPv4 first; link-local IPv6 is left out."""
    found: dict[str, list[Address]] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            if _is_up(asked, name):
                found[name] = _ipv4(asked, name)
    for name, address in _all_ipv6():
        if name in found and not address.is_link_local:
            found[name].append(address)
    return {name: tuple(addresses) for name, addresses in found.items()}


def reachable_addresses() -> dict[str, tuple[Address, ...]]:
    """The interfaces by which other machines may reach this one, with their addresses."""
    everything = addresses_by_interface().items()
    outside = {name: tuple(a for a in found if not a.is_loopback) for name, found in everything}
    return {name: found for name, found in outside.items() if found}


def reachable_texts() -> dict[str, list[str]]:
    """`reachable_addresses` as text, for messages."""
    return {name: [str(a) for a in found] for name, found in reachable_addresses().items()}


def interface_of(interfaces: Iterable[str]) -> tuple[str, str]:
    """The first of these interfaces that this host has, and its first address.

    Raises:
        LaunchError: it has none of them.
    """
    known = addresses_by_interface()
    for name in interfaces:
        if known.get(name):
            return name, str(known[name][0])
    have = ", ".join(f"{name} ({found[0]})" for name, found in known.items() if found)
    raise LaunchError(
        f"no interface {' or '.join(interfaces)} with an address (--network-interface); there are "
        f"{have or 'none'}"
    )


def resolve(name: str) -> tuple[Address, ...]:
    """The addresses that a name has on this host; none if it is not known."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return ()
    texts = dict.fromkeys(str(entry[4][0]).partition("%")[0] for entry in found)
    return tuple(ipaddress.ip_address(text) for text in texts)


def resolve_texts(name: str) -> list[str]:
    """`resolve` as text, for messages."""
    return [str(address) for address in resolve(name)]


def is_this_host(name: str) -> bool:
    """Whether a name means the machine that asks, so that it can be reached without ssh.

    "localhost", this host's own name, or a name of one of its addresses.
    """
    if name in ("localhost", "127.0.0.1", "::1", socket.gethostname()):
        return True
    ours = {address for found in reachable_addresses().values() for address in found}
    return bool(ours) and bool(ours.intersection(resolve(name)))


def machine_id() -> str:
    """An identifier of the machine, the same in all its containers and network namespaces."""
    return _BOOT_ID.read_text().strip()


def identity() -> str:
    """An identifier of the machine and of the network namespace."""
    return f"{machine_id()} {os.readlink('/proc/self/ns/net')}"


def _is_up(asked: socket.socket, name: str) -> bool:
    answer = _ask(asked, name, _SIOCGIFFLAGS)
    # struct ifreq: 16 bytes of name, then the flags, or a sockaddr: 2 bytes of family, 2 of port,
    # the address.
    return answer is not None and bool(struct.unpack_from("H", answer, 16)[0] & _IFF_UP)


def _ipv4(asked: socket.socket, name: str) -> list[Address]:
    answer = _ask(asked, name, _SIOCGIFADDR)
    return [] if answer is None else [ipaddress.IPv4Address(answer[20:24])]


def _ask(asked: socket.socket, name: str, what: int) -> bytes | None:
    """An answer of the kernel about an interface; see netdevice(7)."""
    try:
        return fcntl.ioctl(asked, what, struct.pack("256s", os.fsencode(name)[:15]))
    except OSError:  # it has no such address, or has just gone
        return None


def _all_ipv6() -> list[tuple[str, ipaddress.IPv6Address]]:
    try:
        lines = [line.split() for line in _IF_INET6.read_text().splitlines()]
    except OSError:
        return []
    return [(words[5], ipaddress.IPv6Address(bytes.fromhex(words[0]))) for words in lines]
