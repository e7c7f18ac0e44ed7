"""Environment variables that are numbers: read from a mapping, and checked."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from tfddl._src.cluster.parsing import MAX_CLUSTER_SIZE, MAX_PORT, parse_int, quote
from tfddl.errors import ClusterError

PORT = "TFDDL_PORT"
START_TIMEOUT = "TFDDL_START_TIMEOUT"
CORES = "TFDDL_CORES"
"""How many cores are this worker's own: its CPU affinity may be shared with other workers."""

ALONE = "TFDDL_ALONE"
"""1: this process is a single worker, whatever other variables say."""

DEFAULT_PORT = 12345

# float() also takes digits of every script, "1_0", "inf" and "nan".
_FLOAT = re.compile(r"[0-9.eE+-]{1,40}")


def read_int(
    environ: Mapping[str, str], name: str, *, low: int = 0, high: int = MAX_CLUSTER_SIZE
) -> int:
    """Reads a number from `low` to `high`, both included.

    Raises:
        ClusterError: the variable isn't set, or is no such number.
    """
    text = environ.get(name)
    if text is None:
        raise ClusterError(f"{name} is not set; expected a number, next to the others of its kind")
    return parse_int(text, what=name, low=low, high=high)


def read_start_timeout(environ: Mapping[str, str]) -> float | None:
    """Seconds that workers wait for each other at the start (TFDDL_START_TIMEOUT); None if not set.

    Raises:
        ClusterError: it is no number above 0.
    """
    text = environ.get(START_TIMEOUT)
    if not text:
        return None
    try:
        value = float(text) if _FLOAT.fullmatch(text) else math.nan
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ClusterError(f"{START_TIMEOUT} is {quote(text)}; seconds, above 0, are expected")
    return value


def is_single_worker(environ: Mapping[str, str]) -> bool:
    """Whether TFDDL_ALONE says that this process is a single worker.

    Raises:
        ClusterError: it is neither 0 nor 1.
    """
    text = environ.get(ALONE, "")
    if text not in ("", "0", "1"):
        raise ClusterError(f"{ALONE} is {quote(text)}; expected 1 (train alone), 0 or nothing")
    return text == "1"


def read_port(environ: Mapping[str, str]) -> int | None:
    """The port in TFDDL_PORT; None if not set.

    Raises:
        ClusterError: it is no port.
    """
    return read_int(environ, PORT, low=1, high=MAX_PORT) if environ.get(PORT) else None


def consecutive_ports(
    environ: Mapping[str, str], count: int, *, default: int = DEFAULT_PORT
) -> range:
    """The ports of a host's local ranks: TFDDL_PORT, or else `default`, and the following ones.

    Raises:
        ClusterError: TFDDL_PORT is no port, or the ports don't end before 65536.
    """
    first = read_port(environ) or default
    if not 1 <= first <= MAX_PORT + 1 - count:
        raise ClusterError(
            f"{PORT} is {first}, and a host has {count} workers; it must be "
            f"1..{MAX_PORT + 1 - count}"
        )
    return range(first, first + count)
