"""The address of rank 0 from variables: TFDDL_MASTER, or MASTER_ADDR and MASTER_PORT."""

from __future__ import annotations

from collections.abc import Mapping

from tfddl._src.cluster.cluster import check_address, join_address
from tfddl._src.cluster.environment_variables import DEFAULT_PORT, read_int, read_port
from tfddl._src.cluster.parsing import MAX_PORT

MASTER = "TFDDL_MASTER"
ADDRESS = "MASTER_ADDR"
PORT = "MASTER_PORT"

# Set where torchrun's agent on node 0 listens at MASTER_PORT itself, as the store of its workers.
_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"


def read_master(environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The address of rank 0, and the variables that it was read from.

    TFDDL_MASTER takes precedence ("hostA", or "hostA:12345"), then MASTER_ADDR with MASTER_PORT. A
    host without a port gets TFDDL_PORT, or else 12345. An IPv6 address may stand without brackets
    where no port follows.

    Returns:
        "host:port" and the names of the variables; None where neither is set.

    Raises:
        ClusterError: a value is no address.
    """
    if environ.get(MASTER):
        return _with_port(environ, environ[MASTER], MASTER), MASTER
    if not environ.get(ADDRESS):
        return None
    if not environ.get(PORT):
        return _with_port(environ, environ[ADDRESS], ADDRESS), ADDRESS
    address = join_address(environ[ADDRESS].strip("[]"), master_port(environ))
    check_address(address, f"{ADDRESS} with {PORT}")
    return address, f"{ADDRESS}, {PORT}"


def master_port(environ: Mapping[str, str]) -> int:
    """MASTER_PORT, or the port after it where torchrun's agent listens there itself.

    References:
        torch.distributed.elastic, "Rendezvous" and `torch/distributed/rendezvous.py`: with
        TORCHELASTIC_USE_AGENT_STORE=True the agent of node 0 hosts the store at
        MASTER_ADDR:MASTER_PORT, and workers only connect to it.
    """
    port = read_int(environ, PORT, low=1, high=MAX_PORT)
    if environ.get(_AGENT_STORE) == "True":
        # The same on all workers, so that they agree without asking each other.
        return port + 1 if port < MAX_PORT else port - 1
    return port


def address_with_default_port(environ: Mapping[str, str], host: str, what: str) -> str:
    """The address of a worker of which only the host is known.

    Args:
        environ: TFDDL_PORT in it is the port; 12345 if not set.
        host: name or IP address; IPv6 without brackets.
        what: what the address is, for errors.

    Raises:
        ClusterError: `host` is no host name.
    """
    address = join_address(host, read_port(environ) or DEFAULT_PORT)
    check_address(address, what)
    return address


def _with_port(environ: Mapping[str, str], text: str, what: str) -> str:
    # More than one colon without brackets: an IPv6 address without a port.
    brackets = text.startswith("[") and text.endswith("]")
    if brackets or text.count(":") != 1 and not text.startswith("["):
        return address_with_default_port(environ, text[1:-1] if brackets else text, what)
    check_address(text, what)
    return text
