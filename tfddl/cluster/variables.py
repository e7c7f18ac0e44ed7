"""Environment variables as numbers: read from a mapping, checked with their names."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tfddl.errors import ClusterError

PORT = "TFDDL_PORT"
START_TIMEOUT = "TFDDL_START_TIMEOUT"
SECRET = "TFDDL_SECRET"
"""The job's secret, in hexadecimal digits, by which its workers know each other."""

CORES = "TFDDL_CORES"
"""How many cores are a worker's own, since its affinity may or may not be shared with others."""

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


def read_start_timeout(environ: Mapping[str, str]) -> float | None:
    """How many seconds workers wait for each other, by TFDDL_START_TIMEOUT; None if not set.

    Raises:
        ClusterError: it is no number above 0.
    """
    text = environ.get(START_TIMEOUT)
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ClusterError(f"{START_TIMEOUT} is {text!r}; seconds, above 0, are expected")
    return value


def read_cores(environ: Mapping[str, str]) -> int | None:
    """How many cores are this worker's own, by TFDDL_CORES; None if not set.

    Raises:
        ClusterError: it is no number above 0.
    """
    if not environ.get(CORES):
        return None
    value = read_int(environ, CORES)
    if value < 1:
        raise ClusterError(f"{CORES} is {value}; it must be at least 1")
    return value


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
