"""The warning that others can reach TensorFlow's servers, and the firewall line against it."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping, Sequence

from tfddl._src.cluster import Cluster
from tfddl._src.launcher.interfaces import reachable_texts, resolve_texts

TRUSTED_NETWORK = "TFDDL_TRUSTED_NETWORK"
"""Set in the environment, it ends the warning (`tfddlrun --trusted-network`)."""

Interfaces = Mapping[str, Sequence[str]]
"""The addresses of each interface that other machines may reach."""


def server_warning(cluster: Cluster) -> str | None:
    """What to say on this host once its workers start TensorFlow's servers.

    One worker of each host says it: the one whose `local_rank` is 0.

    Args:
        cluster: who takes part, with the ports of the servers.

    Returns:
        None where there is nothing to warn of: a worker that is alone and has no server, or a
        host whose interfaces don't lead outside.
    """
    if cluster.size == 1:
        return None
    peers = [
        address for host in cluster.hosts if host != cluster.host for address in resolve_texts(host)
    ]
    mine = cluster.ranks_of_hosts[cluster.hosts.index(cluster.host)]
    ports = [int(cluster.addresses[rank].rpartition(":")[2]) for rank in mine]
    return exposure_warning(ports, reachable=reachable_texts(), peers=peers, uid=os.geteuid())


def exposure_warning(
    ports: Sequence[int], *, reachable: Interfaces, peers: Sequence[str], uid: int
) -> str | None:
    """Warns of ports that whoever reaches this host can send commands to: pure.

    Args:
        ports: those of the workers of this host.
        reachable: its interfaces that lead outside.
        peers: the addresses of the job's other hosts.
        uid: the user that the workers run as.

    Returns:
        None where no interface leads outside.
    """
    if not reachable:
        return None
    return (
        "WARNING: TensorFlow's servers obey whoever reaches their ports, on every interface "
        f"({_names(reachable)}), and every user of this host. Unless a firewall does so already, "
        "close them to others, as root (--trusted-network or "
        f"{TRUSTED_NETWORK}=1: don't warn):\n  {firewall_line(ports, peers, uid=uid)}"
    )


def firewall_line(ports: Sequence[int], peers: Sequence[str], *, uid: int) -> str:
    """The command that closes ports to all but one user of this host, and its peers: pure.

    `nft delete table inet tfddl` opens them again.

    Args:
        ports: the ports to close.
        peers: addresses of other hosts to which they stay open.
        uid: the user whose connections within this host stay possible.

    References:
        nft(8), "META EXPRESSIONS" (skuid: the user of the socket that sends),
        https://www.netfilter.org/projects/nftables/manpage.html
    """
    closed = f"tcp dport {{ {', '.join(map(str, ports))} }}"
    rules = [
        f'add rule inet tfddl input iifname != "lo" {sources}{closed} drop'
        for sources in _strangers([ipaddress.ip_address(peer) for peer in peers])
    ]
    commands = (
        "add table inet tfddl",
        "add chain inet tfddl input { type filter hook input priority 0; }",
        *rules,
        # Who has sent a packet is known where it leaves, not where it arrives.
        "add chain inet tfddl output { type filter hook output priority 0; }",
        f'add rule inet tfddl output oifname "lo" {closed} meta skuid != {uid} drop',
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
    return ", ".join(f"{name} {found[0]}" for name, found in interfaces.items())
