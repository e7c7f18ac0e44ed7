"""As much of YAML as `launch/kubernetes/` uses: blocks, and flows on a line."""

import re
from typing import Any

_PAIR = re.compile(r"(?P<key>[^\s:{}\[\],]+):(?: +(?P<value>.*))?")
_TOKEN = re.compile(r'\s*("[^"]*"|[{}\[\],]|:(?=\s)|(?:[^{}\[\],:"]|:(?=\S))+)')
_WORDS = {"true": True, "false": False, "null": None}


def documents(text: str) -> list[Any]:
    """The documents of a file.

    Raises:
        ValueError: There is something in it that isn't understood here.
    """
    return [_Block(part).read() for part in re.split(r"^---$", text, flags=re.MULTILINE)]


class _Block:
    def __init__(self, text: str) -> None:
        self._lines = text.splitlines()

    def read(self) -> Any:
        value = self._value()
        if self._next() is not None:
            raise ValueError(f"a line that belongs nowhere: {self._lines[0]!r}")
        return value

    def _next(self) -> tuple[int, str] | None:
        """The indent of the next line and what is on it; comments are dropped."""
        while self._lines:
            line = re.sub(r"(^|\s)#.*", "", self._lines[0]).rstrip()
            if line:
                return len(line) - len(line.lstrip()), line.lstrip()
            self._lines.pop(0)
        return None

    def _value(self) -> Any:
        found = self._next()
        assert found is not None
        return self._list(found[0]) if found[1].startswith("- ") else self._dict(found[0])

    def _list(self, indent: int) -> list[Any]:
        items: list[Any] = []
        while (found := self._next()) is not None and found[0] == indent:
            text = found[1].removeprefix("- ")
            if text == found[1]:
                raise ValueError(f"no item: {text!r}")
            if _PAIR.fullmatch(text):
                self._lines[0] = " " * (indent + 2) + text
                items.append(self._dict(indent + 2))
            else:
                self._lines.pop(0)
                items.append(_flow(text))
        return items

    def _dict(self, indent: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        while (found := self._next()) is not None and found[0] == indent:
            pair = _PAIR.fullmatch(found[1])
            if pair is None or pair["key"] in pairs:
                raise ValueError(f"no pair, or one that is there before: {found[1]!r}")
            self._lines.pop(0)
            pairs[pair["key"]] = _flow(pair["value"]) if pair["value"] else self._value()
        return pairs


def _flow(text: str) -> Any:
    """What stands on one line: a scalar, {a: 1, b: 2} or [a, b]."""
    if not text.startswith(("{", "[")):
        return _scalar(text)
    tokens = [found[1].strip() for found in _TOKEN.finditer(text)]
    value = _take(tokens)
    if tokens:
        raise ValueError(f"more than one value: {text!r}")
    return value


def _take(tokens: list[str]) -> Any:
    token = tokens.pop(0)
    if token not in ("{", "["):
        return _scalar(token)
    end = {"{": "}", "[": "]"}[token]
    pairs, items = {}, []
    while tokens[0] != end:
        item = _take(tokens)
        if token == "{":
            if tokens.pop(0) != ":":
                raise ValueError(f"no value for {item!r}")
            pairs[item] = _take(tokens)
        items.append(item)
        if tokens[0] == ",":
            tokens.pop(0)
    tokens.pop(0)
    return pairs if token == "{" else items


def _scalar(text: str) -> Any:
    if text.startswith('"'):
        return text[1:-1]
    return int(text) if text.isdecimal() else _WORDS.get(text, text)
