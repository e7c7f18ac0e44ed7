"""Bounded parsers of text from environments, files and sockets, used by all of `cluster`.

Whatever the text is, they return a value or raise `ClusterError`, in time linear in its length.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from tfddl.errors import ClusterError

MAX_JSON_BYTES = 2**20
"""Length of the longest JSON text that is parsed."""

MAX_JSON_DEPTH = 64
"""Deepest nesting of JSON that is parsed; `json` itself would end in a RecursionError."""

MAX_CLUSTER_SIZE = 65536
"""The most workers, hosts or tasks in a description of a cluster, whoever starts them."""

MAX_PORT = 65535

_MAX_DIGITS = 20  # int() takes quadratic time, and refuses more than 4300 digits (CVE-2020-10735).
_MAX_QUOTED_CHARS = 200
_DIGITS = re.compile(r"[0-9]+")  # Not \d, which takes the digits of every script.
# A string, closed or not (so that each character is looked at once), or a bracket.
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[{\]}]', re.DOTALL)


def parse_int(text: str, *, what: str, low: int = 0, high: int = MAX_CLUSTER_SIZE) -> int:
    """Parses a non-negative decimal number.

    Args:
        text: ASCII digits only, without sign or blanks.
        what: what the number is, for errors: a variable, a flag.
        low: the smallest number that is accepted, at least 0.
        high: the largest one, at most 20 digits long.

    Raises:
        ClusterError: the text is no such number, or out of range.
    """
    expected = f"expected a number in {low}..{high}"
    if len(text) > _MAX_DIGITS or not _DIGITS.fullmatch(text):
        raise ClusterError(f"{what} is {quote(text)}; {expected}")
    value = int(text)
    if not low <= value <= high:
        raise ClusterError(f"{what} is {quote(text)}; {expected}")
    return value


def parse_json(
    text: str | bytes, *, what: str, most_bytes: int = MAX_JSON_BYTES, hint: str = ""
) -> Any:
    """Parses one JSON value (RFC 8259).

    Unlike `json.loads` it refuses what parsers treat differently: duplicate keys, NaN and Infinity,
    numbers that overflow, unpaired surrogates.

    Args:
        text: the value; bytes are UTF-8.
        what: what the text is, for errors.
        most_bytes: the greatest length that is accepted.
        hint: appended to the error where the text is no JSON.

    Raises:
        ClusterError: the text is too long, nested too deeply, or no such value; it is quoted.
    """
    if len(text) > most_bytes:
        raise ClusterError(f"{what} is {len(text)} bytes long; expected at most {most_bytes}")
    try:
        decoded = text if isinstance(text, str) else text.decode()
        encoded = len(decoded.encode())
    except UnicodeError:
        raise ClusterError(f"{what} is not text in UTF-8: {quote(repr(text))}") from None
    if encoded > most_bytes:
        raise ClusterError(f"{what} is {encoded} bytes long; expected at most {most_bytes}")
    # Before json.loads, which recurses for each level.
    _check_depth(decoded, what)
    try:
        value = json.loads(
            decoded,
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_float,
        )
        # json.loads accepts escapes of unpaired surrogates, which can't be encoded in UTF-8.
        if "\\u" in decoded:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ClusterError(f"{what} has an unpaired surrogate in it: {quote(decoded)}") from None
    except ValueError as error:
        raise ClusterError(f"{what} is not JSON ({error}): {quote(decoded)}{hint}") from None
    return value


def quote(value: object) -> str:
    """Formats a value for an error: on one line; a long one is cut."""
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    if len(text) > _MAX_QUOTED_CHARS:
        text = text[:_MAX_QUOTED_CHARS] + "…"
    return repr(text) if isinstance(value, str) else text


def _check_depth(text: str, what: str) -> None:
    depth = 0
    for match in _BRACKETS.finditer(text):
        bracket = match[0]
        depth += (bracket in "[{") - (bracket in "]}")
        if depth > MAX_JSON_DEPTH:
            raise ClusterError(
                f"{what} is nested deeper than {MAX_JSON_DEPTH} levels: {quote(text)}"
            )


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {quote(key)} is given twice")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits is too long")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {quote(text)} is too large")
    return value
