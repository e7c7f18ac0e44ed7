"""How it is told that ranks differ."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Mapping, Sequence

_HEADLINE = "The ranks are about to do different things:"

_LONGEST_ERROR = 500

_SHOWN = 3
"""Of how many tensors that differ the messages tell."""


def describe_difference(texts: Mapping[int, str]) -> str:
    """Says what each rank is about to do.

    Args:
        texts: of each rank: a line for the operation, then one for each of its tensors.
    """
    lines = {rank: text.split("\n") for rank, text in texts.items()}
    by_text: dict[str, list[int]] = {}
    for rank, text in zip(lines, _differing(list(lines.values())), strict=True):
        by_text.setdefault(text, []).append(rank)
    return "\n".join(
        [
            _HEADLINE,
            *(f"  {format_ranks(ranks)}: {text}" for text, ranks in by_text.items()),
            "All ranks must call the same operations in the same order, with the same dtypes and "
            "shapes. The next operation can go on.",
        ]
    )


def describe_fork(rank: int) -> str:
    """Says why a process that was forked from a worker can take no part.

    Args:
        rank: the worker's.
    """
    return (
        f"this process was forked from rank {rank}, after tfddl.init(), and takes no part in what "
        "the ranks do together: connections and threads stay with the process that has called "
        "tfddl.init(). HINT: call collectives there, and let children only work for it"
    )


def describe_exit(error: BaseException | None) -> str:
    """Says how the script of a worker has ended whose interpreter comes to its end.

    Args:
        error: what nobody has caught, if anything.
    """
    if error is None:
        return (
            "has ended: its script is over. HINT: all ranks must call the same operations, equally "
            "often; is there less data, or a branch, on that rank?"
        )
    text = "".join(traceback.format_exception_only(error)).strip()
    return f"has ended with {text[:_LONGEST_ERROR]}"


def format_ranks(ranks: Sequence[int]) -> str:
    """Ranks as people write them: "rank 3", "ranks 0..2, 5"."""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {format_ranges(ranks)}"


def format_ranges(numbers: Sequence[int]) -> str:
    """Numbers as people write them, in order: "3", "0..2, 5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}..{r[-1]}" for r in runs)


def _differing(lines: Sequence[Sequence[str]]) -> list[str]:
    """What each rank has (the operation, then its tensors), without what all have alike."""
    if max(len(line) for line in lines) <= 2 * _SHOWN:
        return [_joined(kind, tensors) for kind, *tensors in lines]
    columns = list(itertools.zip_longest(*lines, fillvalue="nothing"))[1:]
    differing = [i for i, column in enumerate(columns) if len(set(column)) > 1][:_SHOWN]
    return [
        ", ".join(
            [
                f"{line[0]} of {len(line) - 1} tensors",
                *(f"the {i + 1}. is {columns[i][rank]}" for i in differing),
            ]
        )
        for rank, line in enumerate(lines)
    ]


def _joined(kind: str, tensors: Sequence[str]) -> str:
    return f"{kind} of {', '.join(tensors)}" if tensors else kind
