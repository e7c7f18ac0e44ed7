"""Text from outside as values, with bounds: every reader of `tfddl._src.cluster` goes through here.

What is parsed comes from an environment, a file or a socket, and may be anything. Whatever it is,
it ends in a value or in a `ClusterError`, in time that grows with its length only.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from tfddl.errors import ClusterError

MAX_JSON_BYTES = 2**20
"""Longest JSON text that is parsed."""

MAX_JSON_DEPTH = 64
"""Deepest nesting of JSON that is parsed; `json` itself would end in a RecursionError."""

MAX_WORKERS = 65536
"""Most workers, hosts or tasks that a variable may speak of."""

MAX_PORT = 65535

_LONGEST_NUMBER = 20  # int() refuses 4300 digits and is quadratic below that.
_LONGEST_QUOTE = 200
_DIGITS = re.compile(r"[0-9]+")  # Not \d, which takes the digits of every script.
# A string, closed or not (so that each character is looked at once), or a bracket.
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[{\]}]', re.DOTALL)


def parse_int(text: str, *, what: str, low: int = 0, high: int = MAX_WORKERS) -> int:
    """Reads a number that is written in ASCII digits.

    Args:
        text: nothing but digits, without a sign or blanks.
        what: what the number is, as errors name it: a variable, a flag.
        low: the smallest that is accepted, at least 0.
        high: the largest, at most 20 digits long.

    Raises:
        ClusterError: the text is no such number, or out of range.
    """
    expected = f"expected a number in {low}..{high}"
    if len(text) > _LONGEST_NUMBER or not _DIGITS.fullmatch(text):
        raise ClusterError(f"{what} is {quote(text)}; {expected}")
    value = int(text)
    if not low <= value <= high:
        raise ClusterError(f"{what} is {quote(text)}; {expected}")
    return value


def parse_json(
    text: str | bytes, *, what: str, most_bytes: int = MAX_JSON_BYTES, hint: str = ""
) -> Any:
    """Reads one JSON value, as RFC 8259 has it.

    Other than `json.loads` it refuses what two readers may understand differently: a key given
    twice, NaN and Infinity, numbers that overflow, half a surrogate pair.

    Args:
        text: the value; bytes are UTF-8.
        what: what the text is, as errors name it.
        most_bytes: its greatest length.
        hint: what to do about text that is no JSON; it follows the error.

    Raises:
        ClusterError: the text is too long, nested too deeply, or no such value.
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
    _check_depth(decoded, what)
    try:
        value = json.loads(
            decoded,
            object_pairs_hook=_object,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_float,
        )
        if "\\u" in decoded:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ClusterError(f"{what} has half a surrogate pair in it: {quote(decoded)}") from None
    except ValueError as error:
        raise ClusterError(f"{what} is not JSON ({error}): {quote(decoded)}{hint}") from None
    return value


def quote(value: object) -> str:
    """Writes a value for a message: what is long, in part, and everything on one line."""
    text = value if isinstance(value, str) else json.dumps(value, default=repr)
    if len(text) > _LONGEST_QUOTE:
        text = text[:_LONGEST_QUOTE] + "…"
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
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits is too long")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {quote(text)} is too large")
    return value
