"""What was measured, as tables to read."""

from collections.abc import Mapping, Sequence

from tfddl.bench.config import EXAMPLE_BYTES, Mode, Style, format_size
from tfddl.bench.experiment import SINGLE
from tfddl.bench.jobs import PLAIN
from tfddl.bench.machines import Machine
from tfddl.bench.results import CollectiveSpeed, Results, Start, TrainingSpeed
from tfddl.bench.table import Render, table
from tfddl.bench.targets import HERE

LOUD = 0.1
"""Of the cores: others that keep more than so much of them busy spoil the timings."""

_NOTHING = "–"
_STYLES = {Style.OPTIMIZER: "fit", Style.SCOPE: "scope", Style.STRATEGY: "loop"}

_COLLECTIVES = """\
Collectives, float32: inside tf.function (up to 1 MiB a chain of 4, each of what the one
before made), and eagerly. GB/s are bytes of a rank's tensor per time. The sum: NumPy
adds two such arrays into a third, which is kept, in all workers at once."""
_TRAINING = """\
Training, images per second of all workers, against as many plain Keras processes at
once on the same cores (alone), in alternation. fit: with DistributedOptimizer; scope:
under tfddl.strategy(); loop: TensorFlow's strategy, by hand. Of a step: outside
collectives; in them, waiting for slower ranks; and the rest of it, which moves bytes.
written: bytes written per byte reduced. gradients, sent: MB per step, and what of them
leaves each host."""
_STARTS = """\
From launch to the end of the first training step, in seconds, until the last worker is
done; more: than one plain process with all cores of {where}."""
_MEMORY = """\
Memory of a worker between steps, anonymous and its part of what is shared, in MB,
against that of as many with plain Keras (alone). at start: what it had more before any
model was made. in gradients: what it has more, in units of the gradients' size."""
_READING = """\
{examples} examples of {size} bytes in a .npy file. MB per worker, least..most: its
shard of the file; what it kept after an epoch, and at most meanwhile, of anonymous memory
and its part of what is shared, above what it had before; and what it had mapped of files
then, which is page cache. global, block: shard_dataset of a memory map, in this order;
held: the worker's block as an array."""


def report(results: Results, render: Render = table) -> str:
    """All tables, each with a caption, and what to know of the machines."""
    sections = (_collectives, _training, _starts, _memory, _reading)
    parts = [part(results, render) for part in sections]
    return "\n\n".join(part for part in (_streams(results), *parts, _closing(results)) if part)


def _streams(results: Results) -> str:
    lines = {
        f"What one TCP stream carries between the hosts isn't known: {stream.error}"
        if stream.gb_per_s is None
        else f"One TCP stream carries {stream.gb_per_s:.2f} GB/s between the hosts, one way."
        for stream in results.streams
    }
    return "\n".join(sorted(lines))


def _section(caption: str, headings: str, rows: Sequence[Sequence[str]], render: Render) -> str:
    """A table without the columns in which no row says anything; nothing without rows.

    Args:
        caption: Before it.
        headings: Between commas.
        rows: Of cells, as many as there are headings.
        render: Makes the table.
    """
    if not rows:
        return ""
    names = headings.split(",")
    kept = [i for i in range(len(names)) if any(row[i] != _NOTHING for row in rows)]
    cells = [[row[i] for i in kept] for row in rows]
    return f"{caption}\n\n{render([names[i] for i in kept], cells)}"


def _collectives(results: Results, render: Render) -> str:
    def key(s: CollectiveSpeed) -> tuple[object, ...]:
        return s.workers, s.operation, s.transport, s.num_bytes

    def timing(s: CollectiveSpeed) -> list[str]:
        return [_ms(s.call_s.median), _ms(s.call_s.p95), f"{s.gb_per_s:.3g}"]

    eager = {key(s): s for s in results.collectives if s.mode is Mode.EAGER}
    in_graph = [s for s in results.collectives if s.mode is Mode.GRAPH]
    rows = [
        [
            *(s.operation, str(s.workers), format_size(s.num_bytes), s.transport),
            *(*timing(s), f"{s.of_memory_sum:.2g}", *timing(eager[key(s)])),
        ]
        for s in sorted(in_graph, key=lambda s: (s.operation, s.workers, s.num_bytes))
    ]
    headings = "collective,workers,size,by,ms,p95,GB/s,of the sum,eager ms,p95,GB/s"
    return _section(_COLLECTIVES, headings, rows, render)


def _training(results: Results, render: Render) -> str:
    headings = "model,workers,by,style,images/s,alone,ratio,least..most,÷ strategy,step ms,"
    headings += "compute,waiting,moving,written,gradients,sent"
    return _section(_TRAINING, headings, [_training_row(s) for s in results.training], render)


def _training_row(speed: TrainingSpeed) -> list[str]:
    parts, written = speed.parts, speed.bytes_written_per_byte_reduced
    sent, over = speed.sent_bytes, speed.over_strategy
    times = [parts.compute_s, parts.waiting_s, parts.moving_s] if parts is not None else []
    return [
        f"{speed.model} {speed.image_size} x {speed.batch_size}",
        *(str(speed.workers), speed.transport, _STYLES[speed.style]),
        f"{speed.images_per_s.median:.1f}",
        f"{speed.plain_images_per_s.median:.1f}",
        f"{speed.ratio.median:.3f}",
        f"{speed.ratio.least:.3f}..{speed.ratio.most:.3f}",
        _NOTHING if over is None else f"{over.median:.2f}",
        _ms(speed.step_s),
        *(map(_ms, times) if times else [_NOTHING] * 3),
        _NOTHING if written is None else f"{written:.2f}",
        f"{speed.gradient_bytes / 1e6:.1f}" if sent else _NOTHING,
        ", ".join(f"{count / 1e6:.1f}" for count in sent) or _NOTHING,
    ]


def _starts(results: Results, render: Render) -> str:
    singles = {s.model: s.total_s.median for s in results.starts if s.transport == SINGLE}
    rows = [
        [
            *(start.transport, str(start.workers or 1), f"{start.total_s.median:.1f}"),
            f"{start.total_s.median - singles[start.model]:+.1f}" if start.workers else "",
            str(start.total_s.number),
            *(f"{s:.1f}" for s in (start.import_s, start.init_s, start.first_step_s)),
        ]
        for start in results.starts
        if start.model in singles
    ]
    is_here = all(set(layout) == {HERE} for layout in results.layouts.values())
    caption = _STARTS.format(where="its machine" if is_here else "the first host (by tfddlrun)")
    headings = "start,workers,s,more,starts,import,init,first step"
    return _section(caption, headings, rows, render)


def _memory(results: Results, render: Render) -> str:
    plain = {(s.model, s.workers): s for s in results.starts if s.transport == PLAIN}
    rows = [
        _memory_row(start, plain[start.model, start.workers])
        for start in results.starts
        if start.transport not in (PLAIN, SINGLE)
    ]
    headings = "memory,workers,by,MB,alone,more,at start,gradients,in gradients"
    return _section(_MEMORY, headings, rows, render)


def _memory_row(start: Start, plain: Start) -> list[str]:
    more = start.kept_bytes - plain.kept_bytes
    return [
        *(start.model, str(start.workers), start.transport),
        *(f"{count / 1e6:.0f}" for count in (start.kept_bytes, plain.kept_bytes)),
        f"{more / 1e6:+.0f}",
        f"{(start.started_bytes - plain.started_bytes) / 1e6:+.0f}",
        f"{start.gradient_bytes / 1e6:.1f}",
        f"{more / start.gradient_bytes:+.1f}",
    ]


def _reading(results: Results, render: Render) -> str:
    rows = [
        [
            *(read.order, str(read.workers)),
            *map(_span, (read.shard_bytes, read.kept_bytes, read.peak_bytes, read.mapped_bytes)),
        ]
        for read in results.reading
    ]
    examples = sum(results.reading[0].shard_bytes) // EXAMPLE_BYTES if rows else 0
    caption = _READING.format(examples=examples, size=EXAMPLE_BYTES)
    return _section(caption, "order,workers,shard,kept,at most,mapped", rows, render)


def _span(num_bytes: Sequence[int]) -> str:
    """The least and the most, in MB: "3..12", or "7" where they are the same."""
    least, most = round(min(num_bytes) / 1e6), round(max(num_bytes) / 1e6)
    return str(least) if least == most else f"{least}..{most}"


def _closing(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    foreign = [_foreign(part, taken, results) for part, taken in results.foreign_cores.items()]
    end = f"{versions}; {results.seconds:.0f} s."
    return "\n".join([*map(_machine, results.machines), end, *_layouts(results), *foreign])


def _machine(machine: Machine) -> str:
    one = " (one machine)" if len(machine.hosts) > 1 else ""
    name = "" if machine.hosts == (HERE,) else f"{machine.name}{one}: "
    return f"{name}{machine.processor}, {len(machine.cores)} cores."


def _layouts(results: Results) -> list[str]:
    hosts = dict.fromkeys(host for layout in results.layouts.values() for host in layout)
    if len(hosts) < 2:
        return []
    spread = [
        f"{workers} are {' + '.join(str(layout.get(host, 0)) for host in hosts)}"
        for workers, layout in results.layouts.items()
    ]
    return [f"Workers of {', '.join(hosts)}: {'; '.join(spread)}."]


def _foreign(part: str, taken: Mapping[str, float], results: Results) -> str:
    cores = {machine.name: len(machine.cores) for machine in results.machines}
    found = [
        f"{n:.2f} of {cores[name]} cores{f' of {name}' if len(cores) > 1 else ''}"
        for name, n in taken.items()
    ]
    line = f"Meanwhile ({part}), others kept {', '.join(found)} busy"
    if all(n / cores[name] <= LOUD for name, n in taken.items()):
        return f"{line}."
    machine = "a quiet machine" if len(cores) == 1 else "quiet machines"
    return f"{line}: THESE TIMINGS SAY LITTLE. Run it again on {machine}."


def _ms(seconds: float) -> str:
    """Milliseconds, with three significant digits."""
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"
