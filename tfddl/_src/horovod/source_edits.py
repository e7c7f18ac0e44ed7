"""Replacements in the text of a script, by the positions of its syntax tree. No TensorFlow."""

import ast
import itertools
from collections.abc import Sequence
from typing import Protocol


class Located(Protocol):
    """What has a place in the text: expressions, statements and keyword arguments."""

    lineno: int
    col_offset: int
    end_lineno: int | None
    end_col_offset: int | None


class SourceEdits:
    """Collects replacements, and applies them all at once; whatever isn't replaced stays as it is.

    Positions are bytes of UTF-8, as those of `ast`.
    """

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)
        self._source = text.encode()
        lengths = [len(line) for line in self._source.splitlines(keepends=True)]
        self._line_starts = [0, *itertools.accumulate(lengths)]
        self._edits: list[tuple[int, int, bytes]] = []
        self._removed: dict[int, tuple[Sequence[Located], set[int]]] = {}

    def start(self, node: Located) -> int:
        """Where a node begins."""
        return self._line_starts[node.lineno - 1] + node.col_offset

    def end(self, node: Located) -> int:
        """Where a node ends."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._line_starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: Located) -> str:
        """A node as it is written."""
        return self._source[self.start(node) : self.end(node)].decode()

    def replace(self, node: Located, text: str) -> None:
        """Writes something else in a node's place."""
        self._edits.append((self.start(node), self.end(node), text.encode()))

    def remove_lines(self, node: Located) -> None:
        """Removes all lines of a node, with the comments right above them."""
        assert node.end_lineno is not None
        first = node.lineno
        while first > 1 and self._line(first - 1).strip().startswith(b"#"):
            first -= 1
        start, end = self._line_starts[first - 1], self._line_starts[node.end_lineno]
        self._edits.append((start, end, b""))

    def remove_item(self, items: Sequence[Located], position: int) -> None:
        """Removes one of several items between commas, with a comma and the lines of its own."""
        _, positions = self._removed.setdefault(self.start(items[0]), (items, set()))
        positions.add(position)

    def apply(self) -> str:
        """The text with all replacements; of two that overlap, the first and longer one counts."""
        for items, positions in self._removed.values():
            self._remove_items(items, sorted(positions))
        self._removed.clear()
        parts, done = [], 0
        for start, end, text in sorted(self._edits, key=lambda edit: (edit[0], -edit[1])):
            if start < done:
                continue
            parts += [self._source[done:start], text]
            done = end
        return b"".join([*parts, self._source[done:]]).decode()

    def _remove_items(self, items: Sequence[Located], positions: Sequence[int]) -> None:
        for _, run in itertools.groupby(enumerate(positions), lambda pair: pair[1] - pair[0]):
            removed = [position for _, position in run]
            first, last = removed[0], removed[-1]
            if all(self._has_own_lines(items[position]) for position in removed):
                for position in removed:
                    self.remove_lines(items[position])
                continue
            start, end = self.start(items[first]), self.end(items[last])
            if last + 1 < len(items):
                end = self.start(items[last + 1])
            elif first:
                start = self.end(items[first - 1])
            self._edits.append((start, end, b""))

    def _line(self, number: int) -> bytes:
        return self._source[self._line_starts[number - 1] : self._line_starts[number]]

    def _has_own_lines(self, node: Located) -> bool:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        before = self._line(node.lineno)[: node.col_offset]
        after = self._line(node.end_lineno)[node.end_col_offset :].lstrip(b", \t")
        return not before.strip() and (not after.strip() or after.startswith(b"#"))
