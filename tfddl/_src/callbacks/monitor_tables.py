"""Tables in Markdown, which TensorBoard's page TEXT renders."""

import math
from collections.abc import Sequence

from tfddl._src.callbacks.monitor_charts import slowest_rank
from tfddl._src.callbacks.monitor_meter import StepStats
from tfddl._src.sharding import BlockPlan, Plan, shard_range


def shard_table(plan: Plan, hosts: Sequence[str]) -> str:
    """Which examples every rank trains on in an epoch.

    Args:
        plan: Of the training data.
        hosts: The host of each rank.
    """
    is_block = isinstance(plan, BlockPlan)
    rows = []
    for rank, host in enumerate(hosts):
        sizes = plan.batch_sizes(rank)
        row = [str(rank), host, str(sum(size * n for size, n in sizes.items()))]
        if is_block:
            row.append("[{}, {})".format(*shard_range(plan.num_examples, rank, plan.size)))
        row += [str(plan.steps), _sizes(sizes)]
        rows.append(row)
    order = (
        "each rank keeps to its own block of them"
        if is_block
        else "each step takes the next ones of a common order, and they are split over the ranks"
    )
    shuffled = "in their own order" if plan.seed is None else f"shuffled by seed {plan.seed}"
    examples = sum(int(row[2]) for row in rows)
    return "\n\n".join(
        [
            f"**{examples} examples in {plan.steps} steps per epoch**, {shuffled}: {order}. "
            f"At most {plan.batch_size} per rank and step.",
            _table(
                ["rank", "host", "examples per epoch"]
                + ["range (half-open)"] * is_block
                + ["steps", "batches × size"],
                rows,
            ),
        ]
    )


def counted_table(works: Sequence[StepStats], hosts: Sequence[str]) -> str:
    """How many examples each rank trained on, where there is no plan that says so before.

    Args:
        works: Each rank's measurements in an epoch.
        hosts: The host of each rank.
    """
    rows = [
        [str(rank), host, _number(work.examples, 0), _number(work.steps, 0)]
        for rank, (host, work) in enumerate(zip(hosts, works, strict=True))
    ]
    return "\n\n".join(
        [
            "Counted in the first epoch; with `tfddl.shard_dataset` it is known before.",
            _table(["rank", "host", "examples", "steps"], rows),
        ]
    )


def rank_table(works: Sequence[StepStats], hosts: Sequence[str], *, epoch: int) -> str:
    """How long every rank's steps took; the slowest in bold.

    Args:
        works: Each rank's measurements in the epoch.
        hosts: The host of each rank.
        epoch: Its number, from 1.
    """
    last = slowest_rank(works)
    fastest_s = min(work.busy_s for work in works)
    rows = []
    for rank, (host, work) in enumerate(zip(hosts, works, strict=True)):
        row = [
            str(rank),
            host,
            _number(work.examples, 0),
            _number(1e3 * work.step_s, 1),
            _number(1e3 * work.busy_s, 1),
            _number(1e3 * work.collective_step_s, 1),
        ]
        rows.append([f"**{cell}**" for cell in row] if rank == last else row)
    header = ["rank", "host", "examples", "step (ms)", "busy (ms)", "in collectives (ms)"]
    return "\n\n".join([_headline(works, last, fastest_s, epoch), _table(header, rows)])


def _headline(works: Sequence[StepStats], last: int | None, fastest_s: float, epoch: int) -> str:
    if any(math.isnan(work.step_s) for work in works):
        return f"Epoch {epoch}. A single step, in which TensorFlow made the graph, isn't timed."
    if last is None and len(works) > 1:
        return (
            f"Epoch {epoch}. The time in collectives is unknown, because gradients stay "
            "on a GPU; so it isn't known which rank is the slowest."
        )
    if last is None:
        return f"Epoch {epoch}."
    return (
        f"Epoch {epoch}. The others wait for **rank {last}**: its steps take "
        f"{1e3 * works[last].busy_s:.1f} ms outside of collectives, those of the fastest rank "
        f"{1e3 * fastest_s:.1f} ms."
    )


def _sizes(sizes: dict[int, int]) -> str:
    texts = [f"{number} × {size}" for size, number in sorted(sizes.items(), reverse=True) if size]
    if sizes.get(0):
        texts.append(f"{sizes[0]} padding examples, which don't count")
    return ", ".join(texts)


def _number(value: float, digits: int) -> str:
    return "unknown" if math.isnan(value) else f"{value:.{digits}f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # Right-aligned where each cell is a number, bold or not.
    numeric = [
        all(row[column].strip("*").replace(".", "").isdigit() for row in rows)
        for column in range(len(header))
    ]
    lines = [header, ["---:" if right else ":---" for right in numeric], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
