"""Tables as aligned text."""

from collections.abc import Callable, Sequence

Render = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
"""Makes a text of headings and rows."""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their headings, flush right but for the first.

    >>> print(table(["order", "MB"], [["global", "7"], ["block", "12"]]))
    order   MB
    global   7
    block   12
    """
    lines = [list(headings), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    >>> print(markdown(["order", "MB"], [["global", "7"]]))
    | order | MB |
    |---|---|
    | global | 7 |
    """
    text = ["| " + " | ".join(line) + " |" for line in [headings, *rows]]
    return "\n".join([text[0], "|" + "---|" * len(headings), *text[1:]])
