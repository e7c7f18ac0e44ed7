"""The warning that TensorFlow's servers can be reached from outside: pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from tfddl.launcher.plan import Place

Interfaces = Mapping[str, Sequence[str]]
"""The addresses of each interface that other machines may reach."""


def exposure_warning(places: Sequence[Place], reachable: Mapping[str, Interfaces]) -> str | None:
    """Warns of ports that whoever reaches a host can send commands to.

    Args:
        places: the hosts' parts in the job.
        reachable: by host, its interfaces that lead outside.

    Returns:
        None if there is nothing to warn of: no such interface, or a worker that is alone and
        has no server.
    """
    exposed = [place for place in places if reachable[place.host]]
    if not exposed or sum(len(place.ports) for place in places) < 2:
        return None
    lines = [
        "WARNING: TensorFlow's servers obey whoever reaches their ports, on every interface. "
        "Unless a firewall does so already, close them to others, as root (--trusted-network: "
        "don't warn):"
    ]
    for place in exposed:
        peers = [
            address
            for other in places
            if other.host != place.host
            for found in reachable[other.host].values()
            for address in found
        ]
        where = f"on {place.host}, " if place.host else ""
        lines.append(
            f"  {where}{_names(reachable[place.host])}: {firewall_line(place.ports, peers)}"
        )
    return "\n".join(lines)


def firewall_line(ports: Sequence[int], peers: Sequence[str]) -> str:
    """The command that closes ports to all but this host and its peers.

    `nft delete table inet tfddl` opens them again.
    """
    closed = f"tcp dport {{ {', '.join(map(str, ports))} }} drop"
    rules = [
        f'add rule inet tfddl input iifname != "lo" {sources}{closed}'
        for sources in _strangers([ipaddress.ip_address(peer) for peer in peers])
    ]
    commands = (
        "add table inet tfddl",
        "add chain inet tfddl input { type filter hook input priority 0; }",
        *rules,
    )
    return f"nft '{'; '.join(commands)}'"


def _strangers(peers: Sequence[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> list[str]:
    """What matches all sources but these; a rule sees one version of IP only."""
    if not peers:
        return [""]
    conditions = []
    for version, name in ((4, "ip"), (6, "ip6")):
        known = ", ".join(str(peer) for peer in peers if peer.version == version)
        conditions.append(
            f"{name} saddr != {{ {known} }} " if known else f"meta nfproto ipv{version} "
        )
    return conditions


def _names(interfaces: Interfaces) -> str:
    return ", ".join(f"{name} ({found[0]})" for name, found in interfaces.items())
