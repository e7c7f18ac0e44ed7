"""What goes between hosts, and how fast: sums, training steps, one TCP stream, bytes."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import tensorflow as tf

import tfddl
from tfddl._src.comm import Collective, ProcessGroup, ReduceOp, make_tensorflow_group
from tfddl._src.runtime import current
from tfddl.bench import models
from tfddl.bench.progress import Progress
from tfddl.bench.spread import Spread, ratios
from tfddl.bench.streams import Receiver, send
from tfddl.bench.turns import Case, in_turns, median_s
from tfddl.bench.workloads import Workload

STRATEGY = "TensorFlow's strategy"
_TFDDL = "tfddl"
_ALONE = "alone"
_STREAM_BYTES = 64 * 2**20
_FLOAT_BYTES = 4
_COUNTED_STEPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """How long to measure."""

    rounds: int
    seconds: float
    """Of a turn, about."""

    progress: Progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class Steps:
    """Training steps of a model: seconds on the slowest rank, medians."""

    model: str
    gradient_bytes: int
    images: int
    """Of all workers, per step."""

    alone_s: float
    """Without the others' gradients, all workers at once."""

    strategy_s: float
    tfddl_s: float
    ratio: Spread
    """How many times the images per second of TensorFlow's strategy; round by round."""

    sent_bytes: tuple[int, ...]
    """Per step with tfddl, from each host, as its network interfaces count."""

    @property
    def share(self) -> float:
        """Of the strategy's step, what the gradients take."""
        return 1 - self.alone_s / self.strategy_s


def leaders() -> tuple[int, ...]:
    """The ranks that talk to the other hosts for theirs."""
    return tuple(sorted(ranks[0] for ranks in current().cluster.ranks_of_hosts))


def stream_bytes_per_s() -> float | str:
    """What one TCP stream carries from the first host to the second, or why it isn't known.

    All ranks must call it together.
    """
    first, second = leaders()[:2]
    receiver = Receiver() if tfddl.rank() == second else None
    there = (current().cluster.host, receiver.port) if receiver is not None else None
    host, port = tfddl.broadcast_object(there, second)
    found: float | str = 0.0
    try:
        if receiver is not None:
            receiver.receive(_STREAM_BYTES)
        elif tfddl.rank() == first:
            found = _STREAM_BYTES / send(host, port, _STREAM_BYTES)
    except OSError as error:
        found = f"{type(error).__name__}: {error}"
    return tfddl.broadcast_object(found, first)


def sums(sizes: Sequence[int], pieces: Sequence[int], pace: Pace) -> dict[int, dict[str, float]]:
    """Sums over the ranks of float32, inside `tf.function`. All ranks must call it together.

    Args:
        sizes: Bytes of a rank's tensor.
        pieces: In how many pieces at once the leaders' own sums travel.
        pace: How long.

    Returns:
        By size and by who sums up, median seconds: tfddl, `STRATEGY`, RING in so many pieces.
    """
    transports: dict[str, ProcessGroup | None] = {_TFDDL: current().process_group}
    for number in pieces:
        label = "RING in 1 piece" if number == 1 else f"RING in {number} pieces"
        transports[label] = _between(number)
    found = {}
    for size in sizes:
        with pace.progress.within(f"sums of {size} bytes"):
            ones = tf.ones([size // _FLOAT_BYTES])
            cases = [Case(label, _sum(t, ones)) for label, t in transports.items()]
            cases.insert(1, Case(STRATEGY, _strategy_sum(ones)))
            times = in_turns(
                cases, rounds=pace.rounds, seconds=pace.seconds, progress=pace.progress
            )
            found[size] = {label: median_s(taken) for label, taken in times.items()}
    return found


def steps(workload: Workload, pace: Pace) -> Steps:
    """Trains by hand, in turns: alone, with TensorFlow's strategy, with tfddl.

    All ranks must call it together.
    """
    x, y = models.make_batch(workload, tfddl.rank())
    ways = {_ALONE: _alone, STRATEGY: _with_strategy, _TFDDL: _with_tfddl}
    with pace.progress.within(workload.describe()):
        made = {label: way(workload, x, y) for label, way in ways.items()}
        cases = [Case(label, run) for label, (run, _) in made.items()]
        times = in_turns(cases, rounds=pace.rounds, seconds=pace.seconds, progress=pace.progress)
    sent = _sent_per_step(made[_TFDDL][0])
    seconds = {label: median_s(taken) for label, taken in times.items()}
    return Steps(
        model=workload.model,
        gradient_bytes=models.gradient_bytes(made[_ALONE][1]),
        images=workload.batch_size * tfddl.size(),
        alone_s=seconds[_ALONE],
        strategy_s=seconds[STRATEGY],
        tfddl_s=seconds[_TFDDL],
        ratio=ratios(times[STRATEGY], times[_TFDDL]),
        sent_bytes=sent,
    )


def sent_bytes(net: Path = Path("/sys/class/net")) -> int:
    """What has left this host so far, through all its interfaces but the loopback."""
    return sum(
        int((interface / "statistics" / "tx_bytes").read_text())
        for interface in net.iterdir()
        if interface.name != "lo" and (interface / "statistics").is_dir()
    )


Trained = tuple[Callable[[], object], keras.Model]
"""What makes a step, and what it trains."""


def _between(pieces: int) -> ProcessGroup | None:
    """RING between the leaders; None on all others."""
    if tfddl.rank() not in leaders():
        return None
    device = tfddl.strategy().extended.worker_devices[0]
    group = make_tensorflow_group(
        tfddl.rank(), tfddl.size(), device, Collective.RING, channels=pieces
    )
    return group.subgroup(leaders())


def _sum(transport: ProcessGroup | None, ones: tf.Tensor) -> Callable[[], object] | None:
    if transport is None:
        return None
    return tf.function(lambda: transport.all_reduce([ones], ReduceOp.SUM), autograph=False)


def _strategy_sum(ones: tf.Tensor) -> Callable[[], object]:
    strategy = tfddl.strategy()

    def total() -> tf.Tensor:
        with tf.device(strategy.extended.worker_devices[0]):
            placed = tf.identity(ones)
        replica = tf.distribute.get_replica_context
        return strategy.run(lambda value: replica().all_reduce("SUM", value), args=(placed,))

    return tf.function(total, autograph=False)


def _alone(workload: Workload, x: tf.Tensor, y: tf.Tensor) -> Trained:
    model, optimizer = models.make_model(workload), models.make_optimizer(workload)
    step = _step(model, optimizer, models.make_loss(workload), x, y)
    return tf.function(step, autograph=False), model


def _with_tfddl(workload: Workload, x: tf.Tensor, y: tf.Tensor) -> Trained:
    model = models.make_model(workload)
    optimizer = tfddl.DistributedOptimizer(models.make_optimizer(workload))
    step = _step(model, optimizer, models.make_loss(workload), x, y)
    return tf.function(step, autograph=False), model


def _with_strategy(workload: Workload, x: tf.Tensor, y: tf.Tensor) -> Trained:
    strategy = tfddl.strategy()
    with strategy.scope():
        model, optimizer = models.make_model(workload), models.make_optimizer(workload)
        loss_fn = models.make_loss(workload)
        # It adds up what the workers have.
        step = _step(model, optimizer, lambda y, p: loss_fn(y, p) / tfddl.size(), x, y)
    return tf.function(lambda: strategy.run(step), autograph=False), model


def _step(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    loss_fn: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    y: tf.Tensor,
) -> Callable[[], None]:
    optimizer.build(model.trainable_variables)

    def step() -> None:
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)

    return step


def _sent_per_step(run: Callable[[], object]) -> tuple[int, ...]:
    tfddl.barrier()
    before = sent_bytes()
    tfddl.barrier()
    for _ in range(_COUNTED_STEPS):
        run()
    tfddl.barrier()
    sent = tfddl.allgather_object((sent_bytes() - before) // _COUNTED_STEPS)
    return tuple(sent[rank] for rank in leaders())
