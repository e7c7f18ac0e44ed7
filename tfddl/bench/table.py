"""What was measured, as text."""

from collections.abc import Sequence


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their headings, all to the right but the first.

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


def span(values: Sequence[float]) -> str:
    """The least and the most, as whole numbers: "3..12", or "7" where they are the same."""
    least, most = round(min(values)), round(max(values))
    return str(least) if least == most else f"{least}..{most}"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a README.

    >>> print(markdown(["order", "MB"], [["global", "7"]]))
    | order | MB |
    |---|---|
    | global | 7 |
    """
    lines = [headings, *rows]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([text[0], "|" + "---|" * len(headings), *text[1:]])
