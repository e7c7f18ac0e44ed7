"""Texts of errors that several packages raise: differences between ranks, ends of workers."""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Mapping, Sequence

_MAX_ERROR_CHARS = 500

# How many of the tensors that differ are named.
_MAX_TENSORS_SHOWN = 3


def describe_difference(texts: Mapping[int, str]) -> str:
    """The text of a `DisagreementError`.

    Args:
        texts: by rank: a line for the operation, then one for each of its tensors.
    """
    lines = {rank: text.split("\n") for rank, text in texts.items()}
    by_text: dict[str, list[int]] = {}
    for rank, text in zip(lines, _differences(list(lines.values())), strict=True):
        by_text.setdefault(text, []).append(rank)
    return "\n".join(
        [
            "The ranks are about to do different things:",
            *(f"  {format_ranks(ranks)}: {text}" for text, ranks in by_text.items()),
            "All ranks must call the same operations in the same order, with the same dtypes and "
            "shapes. The next operation can go on.",
        ]
    )


def describe_joined(operation: str, ranks: Sequence[int]) -> str:
    """Why an operation isn't done while workers have joined.

    Args:
        operation: which.
        ranks: of those that have joined.
    """
    have = "has" if len(ranks) == 1 else "have"
    return (
        f"{operation} needs all ranks, but {format_ranks(ranks)} {have} called join; until all "
        "have, only allreduce works. HINT: call join after the last operation of another kind; "
        "gradients that are tf.IndexedSlices become dense by sparse_as_dense=True. The next "
        "operation can go on."
    )


def describe_fork(rank: int) -> str:
    """Why a process that was forked from a worker can't take part.

    Args:
        rank: of the worker.
    """
    return (
        f"this process was forked from rank {rank}, after tfddl.init(), and takes no part in what "
        "the ranks do together: connections and threads stay with the process that has called "
        "tfddl.init(). HINT: call collectives there, and let children only work for it"
    )


def describe_exit(error: BaseException | None) -> str:
    """How the script of a worker has ended whose interpreter is exiting; follows "rank 3".

    Args:
        error: the uncaught exception; None where there was none.
    """
    if error is None:
        return (
            "has ended: its script is over. HINT: all ranks must call the same operations, equally "
            "often; is there less data, or a branch, on that rank?"
        )
    text = "".join(traceback.format_exception_only(error)).strip()
    return f"has ended with {text[:_MAX_ERROR_CHARS]}"


def format_ranks(ranks: Sequence[int]) -> str:
    """Ranks for people, in order: "rank 3", "ranks 0..2, 5"."""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {format_ranges(ranks)}"


def format_ranges(numbers: Sequence[int]) -> str:
    """Numbers for people, in order: "3", "0..2, 5"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}..{r[-1]}" for r in runs)


def _differences(lines: Sequence[Sequence[str]]) -> list[str]:
    """What each rank has (the operation, then its tensors), without tensors that are alike."""
    if max(len(line) for line in lines) <= 2 * _MAX_TENSORS_SHOWN:
        return [_join(kind, tensors) for kind, *tensors in lines]
    columns = list(itertools.zip_longest(*lines, fillvalue="nothing"))[1:]
    differing = [i for i, column in enumerate(columns) if len(set(column)) > 1][:_MAX_TENSORS_SHOWN]
    return [
        ", ".join(
            [
                f"{line[0]} of {len(line) - 1} tensors",
                *(f"the {i + 1}. is {columns[i][rank]}" for i in differing),
            ]
        )
        for rank, line in enumerate(lines)
    ]


def _join(kind: str, tensors: Sequence[str]) -> str:
    return f"{kind} of {', '.join(tensors)}" if tensors else kind
