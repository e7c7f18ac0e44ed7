"""Environment variables as numbers: read from a mapping, checked with their names."""

from __future__ import annotations

from collections.abc import Mapping

from tfddl.errors import ClusterError

PORT = "TFDDL_PORT"
DEFAULT_PORT = 12345


def read_int(environ: Mapping[str, str], name: str) -> int:
    """Reads a variable that has to be a non-negative integer.

    Raises:
        ClusterError: it is not set, or is no such number.
    """
    text = environ.get(name)
    if text is None:
        raise ClusterError(f"{name} is not set; expected a number, next to the others of its kind")
    if not (text.isascii() and text.isdecimal()):
        raise ClusterError(f"{name} is {text!r}; expected a number")
    return int(text)


def consecutive_ports(environ: Mapping[str, str], count: int) -> range:
    """The ports of a host's local ranks: TFDDL_PORT (or 12345) and those that follow.

    Raises:
        ClusterError: TFDDL_PORT is no number, or the ports don't end before 65536.
    """
    first = read_int(environ, PORT) if environ.get(PORT) else DEFAULT_PORT
    if not 1 <= first <= 65536 - count:
        raise ClusterError(
            f"{PORT} is {first}, and a host has {count} workers; it must be 1..{65536 - count}"
        )
    return range(first, first + count)
