"""What was measured, as tables to read."""

from collections.abc import Callable, Mapping, Sequence

from tfddl.bench.config import EXAMPLE_BYTES, format_size
from tfddl.bench.cost_model import LATENCY_MS, RANKS_PER_HOST
from tfddl.bench.results import RATIOS, Results, Row

BUSY = 0.1
"""Of the cores: others that keep more than so much of them busy spoil the timings."""

_NOTHING = "–"
_CAPTIONS = {
    "stream": "One TCP stream between the first two hosts, one way.",
    "collectives": """\
Collectives, float32: inside tf.function (up to 1 MiB a chain of 4, each of what the one
before made), and eagerly. GB/s are bytes of a rank's tensor per time. ratio: of the time
that NumPy takes to add two such arrays into a third, in all workers at once, to this.""",
    "training": """\
Training, examples per second of all workers. ratio: to as many plain Keras processes at
once on the same cores, in alternation. fit: with DistributedOptimizer; jit: with it, and
both compiled by XLA; scope: under tfddl.strategy(); loop: by hand. Of a step: outside
collectives; in them, waiting for slower ranks; and the rest of it, which moves bytes.
written: bytes written per byte reduced. sent: MB per step that leave the host that sends
most.""",
    "steps": """\
CPU time of a step of fit, in ms, mean of the ranks. plain: of plain Keras; then, what is
more with DistributedOptimizer: callbacks; header and weights of the gradients; entering
Python and leaving it; collectives. ratio: of plain to all. More than with a batch that stays
the same: plain Keras with arrays; DistributedOptimizer with arrays, and with shard_dataset.""",
    "virtual": """\
A step of fit with virtual workers, in ms: with one in each worker, beside DistributedOptimizer
without them; with several in a single worker, beside plain Keras that accumulates as many
batches. times plain: the former by the latter, 1 is as fast.""",
    "starts": """\
From launch to the end of the first training step, until the last worker is done; more,
ratio: than one plain process with all cores of its machine (the first host, by tfddlrun).
Memory of a worker between steps: anonymous and its part of what is shared; more than that
of as many with plain Keras, also before any model was made, and in units of the gradients.""",
    "reading": f"""\
A .npy file of examples of {EXAMPLE_BYTES} bytes. MB of the worker with the most: its shard
of the file; what it kept after an epoch (ratio: to the shard), and at most meanwhile, of
anonymous memory and its part of what is shared, above what it had before; and what it had
mapped of files then, which is page cache. global, block: shard_dataset of a memory map, in
this order; held: the worker's block as an array.""",
    "feeding": """\
Images of 128 x 128 in an order that is shuffled anew in each epoch, decoded and in batches of 32:
examples per second of all workers, and microseconds of CPU time per example. ratio: of the
examples per second to those of a tf.data pipeline written by hand.""",
    "scaling": """\
Allreduce of float32 between processes without TensorFlow: CPU time of a rank per operation,
time, and seconds to connect. ratio: of CPU time to the smallest group's in the same round.
model: the CPU time by the costs below. Of the rank that has most: connections to others, open
descriptors, threads, and memory: anonymous and its part of what is shared.""",
    "costs": """\
What fits the CPU times above best: of an operation, of a message, of a MB sent and received,
of a MB reduced.""",
    "prediction": f"""\
By these costs, the time of an allreduce over hosts of {RANKS_PER_HOST} ranks, with so many Gbit/s
each, {1e3 * LATENCY_MS:g} us away from each other.""",
    "machines": "Cores of the machines, and how many of them other programs kept busy meanwhile.",
}

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


def report(results: Results, render: Render = table) -> str:
    """All tables, each with a caption, and what to know of the run."""
    parts = [
        f"{caption}\n\n{_render(rows, render)}"
        for name, caption in _CAPTIONS.items()
        if (rows := results.table(name))
    ]
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    parts.append(f"{versions}; {results.seconds:.0f} s." if versions else "")
    return "\n\n".join(filter(None, [*parts, _warning(results)]))


def compare(before: Results, after: Results) -> str:
    """The ratios that two runs share: each has its baseline in the same run."""
    old = {_describe(row): row.values for row in before.rows}
    rows = []
    for row in after.rows:
        values = old.get(_describe(row), {})
        for name in (name for name in RATIOS if values.get(name) and name in row.values):
            texts = map(format_number, (values[name], row.values[name]))
            change = f"{row.values[name] / values[name] - 1:+.1%}"
            rows.append([_describe(row), name, *texts, change])
    compared = table(["in both", "what", "before", "after", "change"], rows)
    return "\n\n".join(filter(None, [compared, _warning(before) or _warning(after)]))


def _warning(results: Results) -> str:
    machines = [row.values for row in results.table("machines")]
    if any(machine.get("others_busy", 0) > BUSY * machine["cores"] for machine in machines):
        return "THESE TIMINGS SAY LITTLE: others kept cores busy. Run it again without them."
    return ""


def format_number(value: float) -> str:
    """With three significant digits.

    >>> [format_number(x) for x in (0.96349, 1234.5, 0.0, 12.0)]
    ['0.963', '1234', '0', '12']
    """
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _render(rows: Sequence[Row], render: Render) -> str:
    cells = [
        _label_cells(row.labels) | {name: format_number(v) for name, v in row.values.items()}
        for row in rows
    ]
    labels = dict.fromkeys(name for row in rows for name in row.labels)
    names = list(dict.fromkeys([*labels, *(name for row in cells for name in row)]))
    headings = [name.replace("gb_per_s", "GB/s").replace("_", " ") for name in names]
    return render(headings, [[row.get(name, _NOTHING) for name in names] for row in cells])


def _label_cells(labels: Mapping[str, str | int]) -> dict[str, str]:
    return {k: format_size(int(v)) if k == "bytes" else str(v) for k, v in labels.items()}


def _describe(row: Row) -> str:
    labels = _label_cells(row.labels).items()
    return f"{row.table}: {', '.join(f'{k} {v}' for k, v in labels)}"
