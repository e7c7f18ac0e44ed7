"""What was measured, as tables to read."""

from collections.abc import Callable, Mapping, Sequence

from tfddl.bench.ground import HERE
from tfddl.bench.machines import Met
from tfddl.bench.orders import Mode
from tfddl.bench.results import CollectiveSpeed, Memory, Results, Start, TrainingSpeed
from tfddl.bench.settings import format_size
from tfddl.bench.starting import SINGLE
from tfddl.bench.table import table

Render = Callable[[Sequence[str], Sequence[Sequence[str]]], str]
"""Makes a text of headings and rows."""

LOUD = 0.1
"""Of the cores: others that keep more than so much of them busy spoil the timings."""

_NOTHING = "–"


def report(results: Results, render: Render = table) -> str:
    """All tables, each with a caption, and what to know of the machine."""
    parts = [
        part
        for part in (
            _collectives(results, render),
            _training(results, render),
            _starts(results, render),
            _memory(results, render),
        )
        if part
    ]
    return "\n\n".join([*parts, _closing(results)])


def _collectives(results: Results, render: Render) -> str:
    if not results.collectives:
        return ""
    eager = {_key(s): s for s in results.collectives if s.mode is Mode.EAGER}
    rows = [
        _collective_row(results, speed, eager[_key(speed)])
        for speed in sorted(results.collectives, key=_by_size)
        if speed.mode is Mode.GRAPH
    ]
    in_graph = ("collective", "workers", "size", "by", "ms", "p95", "GB/s", "of the sum")
    headings = (*in_graph, "eager ms", "p95", "GB/s")
    return (
        "Collectives, float32: inside tf.function (up to 1 MiB a chain of 4, each of what the one\n"
        "before made), and eagerly. GB/s are bytes of a rank's tensor per time. The sum: NumPy\n"
        "adds two such arrays into a third, which is kept, in all workers at once.\n\n"
    ) + render(headings, rows)


def _collective_row(results: Results, speed: CollectiveSpeed, eager: CollectiveSpeed) -> list[str]:
    in_memory = results.sum_speed(speed.workers, speed.num_bytes)
    share = _NOTHING if in_memory is None else f"{speed.gb_per_s / in_memory:.2g}"
    return [
        speed.operation,
        str(speed.workers),
        format_size(speed.num_bytes),
        speed.transport,
        *_timing(speed),
        share,
        *_timing(eager),
    ]


def _timing(speed: CollectiveSpeed) -> list[str]:
    return [_ms(speed.call_s.median), _ms(speed.call_s.p95), f"{speed.gb_per_s:.3g}"]


def _training(results: Results, render: Render) -> str:
    if not results.training:
        return ""
    speed = ("model", "workers", "by", "images/s", "alone", "ratio", "least..most")
    headings = (*speed, "step ms", "compute", "waiting", "moving", "written")
    rows = [_training_row(trained) for trained in results.training]
    return (
        "Training by fit with DistributedOptimizer, images per second of all workers, against as\n"
        "many lone workers with plain Keras at once on the same cores (alone), in alternation.\n"
        "Of a step: outside collectives; in them, waiting for slower ranks; and the rest of it,\n"
        "which moves bytes. written: bytes written per byte reduced, where that is counted.\n\n"
    ) + render(headings, rows)


def _training_row(speed: TrainingSpeed) -> list[str]:
    parts, written = speed.parts, speed.bytes_written_per_byte_reduced
    times = (
        [_NOTHING] * 3
        if parts is None
        else [_ms(s) for s in (parts.compute_s, parts.waiting_s, parts.moving_s)]
    )
    return [
        f"{speed.model} {speed.image_size} x {speed.batch_size}",
        str(speed.workers),
        speed.transport,
        f"{speed.images_per_s.median:.1f}",
        f"{speed.lone_images_per_s.median:.1f}",
        f"{speed.ratio.median:.3f}",
        f"{speed.ratio.least:.3f}..{speed.ratio.most:.3f}",
        _ms(speed.step_s),
        *times,
        _NOTHING if written is None else f"{written:.2f}",
    ]


def _starts(results: Results, render: Render) -> str:
    if not results.starts:
        return ""
    single = next(s.total_s.median for s in results.starts if s.transport == SINGLE)
    headings = ("start", "workers", "s", "more", "starts", "import", "init", "first step")
    rows = [_start_row(start, single) for start in results.starts]
    return (
        "From launch to the end of the first training step, in seconds, until the last worker is\n"
        f"done; more: than one plain process {_single(results)}.\n\n"
    ) + render(headings, rows)


def _single(results: Results) -> str:
    if any(set(layout) != {HERE} for layout in results.layouts.values()):
        return "that tfddlrun starts on the first host, with all its cores"
    return "that has all cores to itself"


def _start_row(start: Start, single_s: float) -> list[str]:
    more = "" if start.transport == SINGLE else f"{start.total_s.median - single_s:+.1f}"
    return [
        start.transport,
        str(start.workers or 1),
        f"{start.total_s.median:.1f}",
        more,
        str(start.total_s.number),
        *(f"{s:.1f}" for s in (start.import_s, start.init_s, start.first_step_s)),
    ]


def _memory(results: Results, render: Render) -> str:
    if not results.memory:
        return ""
    kept = ("memory", "workers", "by", "MB", "alone", "more", "at start")
    headings = (*kept, "gradients", "in gradients")
    rows = [_memory_row(memory) for memory in results.memory]
    return (
        "Memory of a worker between steps, anonymous and its part of what is shared, in MB,\n"
        "against that of a lone worker with plain Keras. at start: what it had more before any\n"
        "model was made. in gradients: what it has more, in units of the gradients' size.\n\n"
    ) + render(headings, rows)


def _memory_row(memory: Memory) -> list[str]:
    kept, lone, gradients = (
        n / 1e6 for n in (memory.kept_bytes, memory.lone_kept_bytes, memory.gradient_bytes)
    )
    return [
        memory.model,
        str(memory.workers),
        memory.transport,
        f"{kept:.0f}",
        f"{lone:.0f}",
        f"{kept - lone:+.0f}",
        f"{(memory.started_bytes - memory.lone_started_bytes) / 1e6:+.0f}",
        f"{gradients:.1f}",
        f"{memory.beyond_in_gradients:+.1f}",
    ]


def _closing(results: Results) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return "\n".join(
        [
            *map(_machine, results.machines),
            f"{versions}; {results.seconds:.0f} s.",
            *_layouts(results),
            *(_foreign(part, taken, results) for part, taken in results.foreign_cores.items()),
        ]
    )


def _machine(machine: Met) -> str:
    one = " (one machine)" if len(machine.hosts) > 1 else ""
    name = "" if machine.hosts == (HERE,) else f"{machine.name}{one}: "
    return f"{name}{machine.processor}, {machine.cores} cores."


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
    cores = {machine.name: machine.cores for machine in results.machines}
    found = [
        f"{n:.2f} of {cores[name]} cores{f' of {name}' if len(cores) > 1 else ''}"
        for name, n in taken.items()
    ]
    line = f"Meanwhile ({part}), others kept {', '.join(found)} busy"
    if all(n / cores[name] <= LOUD for name, n in taken.items()):
        return f"{line}."
    machine = "a quiet machine" if len(cores) == 1 else "quiet machines"
    return f"{line}: THESE TIMINGS SAY LITTLE. Run it again on {machine}."


def _key(speed: CollectiveSpeed) -> tuple[object, ...]:
    return speed.workers, speed.operation, speed.transport, speed.num_bytes


def _by_size(speed: CollectiveSpeed) -> tuple[str, int, int]:
    return speed.operation, speed.workers, speed.num_bytes


def _ms(seconds: float) -> str:
    """Milliseconds, with three digits that mean something."""
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"
