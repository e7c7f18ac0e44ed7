r"""Measures what goes between hosts: ``tfddlrun -H hostA:1,hostB:1 python -m tfddl.bench.between``.

In every worker of a job on two hosts or more. How long sums take: as tfddl makes them, between all
workers; by TensorFlow's strategy; and through RING between one worker of each host in so many
pieces at once, of which tfddl takes 8. What one TCP stream carries, to
compare with. And training steps, in a loop by hand: alone, with TensorFlow's strategy, and with
tfddl. Timings are medians, in turns, of the slowest worker.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from absl import app, flags

import tfddl
from tfddl.bench.progress import Progress
from tfddl.bench.settings import format_size, parse_size
from tfddl.bench.table import markdown
from tfddl.bench.workloads import WORKLOADS, Workload
from tfddl.errors import DataError, TfddlError

if TYPE_CHECKING:
    from tfddl._src.runtime import Runtime
    from tfddl.bench.crossing import Steps

_SIZES = flags.DEFINE_list("sizes", ["64K", "1M", "16M", "64M"], "Bytes of the sums.")
_TRY_PIECES = flags.DEFINE_list(
    "try_pieces", ["1", "4", "8", "16"], "Numbers of pieces to compare in the sums, 1 to 16."
)
_BETWEEN_HOSTS = flags.DEFINE_enum(
    "between_hosts", "auto", ["auto", "tcp", "ring"], "What tfddl.init gets."
)
_MODELS = flags.DEFINE_list(
    "models", ["mlp"], f"What is trained, of {', '.join(WORKLOADS)}; empty for nothing."
)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Of all models. [default: each its own]")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images per worker and step.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How many turns each has.", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 0.5, "How long a turn takes, about.", lower_bound=0.0)


def main(argv: Sequence[str]) -> None:
    """Measures, in each worker; rank 0 prints."""
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}; all values are flags.")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    try:
        sizes, pieces, workloads = _sizes(), _numbers(), _workloads()
        tfddl.init(between_hosts=_BETWEEN_HOSTS.value)
        tfddl.strategy()  # It is measured, too, and has to come before the first operation.
        text = _measure(sizes, pieces, workloads)
        if tfddl.rank() == 0:
            sys.stdout.write(text)
        tfddl.shutdown()
    except (TfddlError, OSError) as error:
        sys.exit(f"tfddl.bench.between: {type(error).__name__}: {error}")


def _sizes() -> list[int]:
    return [parse_size(size) for size in _SIZES.value]


def _numbers() -> list[int]:
    try:
        numbers = [int(number) for number in _TRY_PIECES.value]
    except ValueError:
        numbers = [0]
    if not all(1 <= number <= 16 for number in numbers):
        raise DataError(f"--try_pieces is {_TRY_PIECES.value}; it must be like 1,4,8: 1 to 16.")
    return numbers


def _workloads() -> list[Workload]:
    unknown = [name for name in _MODELS.value if name not in WORKLOADS]
    if unknown:
        raise DataError(f"--models has {unknown[0]}; it must be of {', '.join(WORKLOADS)}.")
    known = [WORKLOADS[name] for name in _MODELS.value]
    return [
        Workload(
            model=workload.model,
            label=workload.label,
            image_size=_IMAGE_SIZE.value or workload.image_size,
            batch_size=_BATCH_SIZE.value,
        )
        for workload in known
    ]


def _measure(sizes: Sequence[int], pieces: Sequence[int], workloads: Sequence[Workload]) -> str:
    # TensorFlow takes seconds to load, which --help and a mistake in the flags needn't wait for.
    from tfddl._src.runtime import current
    from tfddl.bench import crossing

    cluster = current().cluster
    if len(cluster.hosts) < 2:
        raise DataError(
            f"all workers are on {cluster.host}; this measures what goes between "
            "hosts. HINT: tfddlrun -H hostA:1,hostB:1 python -m tfddl.bench.between. For one host "
            "there is tfddl-bench."
        )
    progress = Progress(name="tfddl.bench.between", quiet=cluster.rank != 0)
    pace = crossing.Pace(rounds=_ROUNDS.value, seconds=_SECONDS.value, progress=progress)
    texts = [
        f"{cluster.size} workers on {len(cluster.hosts)} hosts, {_transport(current())}.\n",
        _stream(crossing.stream_bytes_per_s()),
    ]
    if sizes:
        texts.append(_sums(crossing.sums(sizes, pieces, pace)))
    trained = [crossing.steps(workload, pace) for workload in workloads]
    if trained:
        texts.append(_steps(trained))
    return "\n".join(texts)


def _transport(runtime: "Runtime") -> str:
    return runtime.process_group.name


def _stream(found: float | str) -> str:
    if isinstance(found, str):
        return f"What one TCP stream carries isn't known: {found}\n"
    return f"One TCP stream carries {found / 1e9:.2f} GB/s, one way.\n"


def _sums(found: Mapping[int, Mapping[str, float]]) -> str:
    rows = [
        [
            format_size(size),
            *(f"{1e3 * s:.3g} ms, {size / s / 1e9:.2f} GB/s" for s in times.values()),
        ]
        for size, times in found.items()
    ]
    return markdown(["sum of", *next(iter(found.values()))], rows) + "\n"


def _steps(trained: Sequence["Steps"]) -> str:
    headings = [
        "model",
        "gradients",
        "alone",
        "TensorFlow's strategy",
        "tfddl",
        "ratio",
        "least..most",
        "gradients' share",
        "sent per host",
    ]
    rows = [
        [
            step.model,
            f"{step.gradient_bytes / 1e6:.1f} MB",
            *(f"{step.images / s:.3g}" for s in (step.alone_s, step.strategy_s, step.tfddl_s)),
            f"{step.ratio.median:.2f}",
            f"{step.ratio.least:.2f}..{step.ratio.most:.2f}",
            f"{step.share:.0%}",
            ", ".join(f"{sent / 1e6:.1f}" for sent in step.sent_bytes) + " MB",
        ]
        for step in trained
    ]
    return (
        (
            "Images per second of all workers; what of the strategy's step gradients take; what\n"
            "leaves each host in a step with tfddl.\n\n"
        )
        + markdown(headings, rows)
        + "\n"
    )


if __name__ == "__main__":
    app.run(main)
