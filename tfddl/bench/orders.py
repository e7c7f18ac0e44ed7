"""What a worker is told to do while it is measured, and what it answers.

All workers of a crew get the same orders in the same order, and each answers every one of them.
"""

import dataclasses
import enum

from tfddl.bench.load import Moment
from tfddl.bench.machines import Machine
from tfddl.bench.workloads import Workload

LONE = "lone"
"""The way of a worker that knows nothing of the others: plain Keras."""

AUTO = "auto"
"""The way of a worker that trains with tfddl, as `tfddl.init()` chooses; others are what else it
can be asked for, by the names that `tfddl.bench.contestants` gives them."""

STRATEGY = "strategy"
"""The way of a worker that trains by TensorFlow's own strategy, in a loop by hand."""


class Mode(enum.StrEnum):
    """From where a collective is called."""

    GRAPH = "graph"
    """Inside `tf.function`."""

    EAGER = "eager"


class Operation(enum.StrEnum):
    """A collective."""

    ALLREDUCE = "allreduce"
    ALLGATHER = "allgather"
    BROADCAST = "broadcast"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hello:
    """A worker is there; it says so without being asked."""

    rank: int
    pid: int
    label: str
    """How tables call its way."""

    others: tuple[str, ...] = ()
    """The ways of training with tfddl that would make a difference here."""

    machine: Machine

    import_s: float
    """How long it took to load TensorFlow and Keras."""

    init_s: float
    """How long `tfddl.init()`, or the strategy, took."""

    kept_bytes: int
    """Anonymous and shared memory."""

    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Train:
    """Begin to train a model; answered by `Trains` after the first step."""

    workload: Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trains:
    """The first step is done, and the next ones wait for orders."""

    first_step_s: float
    """From the order on: making the model, tracing, and the step."""

    gradient_bytes: int
    """Of one step."""


@dataclasses.dataclass(frozen=True)
class Steps:
    """Train on; answered by `Ran`."""

    number: int
    """How many steps count; one before them doesn't."""

    with_clock: bool = False
    """Whether to measure the time in collectives."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ran:
    """What the steps took."""

    step_s: tuple[float, ...]
    collective_s: tuple[float, ...] = ()
    """In each step; empty where it wasn't asked for, or can't be told."""

    counters: dict[str, int]
    """What the transport counted during these steps."""

    kept_bytes: int
    """Anonymous and shared memory, after the last step."""


@dataclasses.dataclass(frozen=True)
class Stop:
    """End the training; answered by `Done`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Call:
    """Run a collective, or, alone, the sum in memory; answered by `Called`."""

    operation: Operation
    mode: Mode
    num_bytes: int
    """Of one rank's tensor, float32."""

    calls: int


@dataclasses.dataclass(frozen=True)
class Called:
    """How long collectives took."""

    call_s: tuple[float, ...]
    """Of each call, in seconds per collective."""

    number: int
    """How many collectives one call has."""


@dataclasses.dataclass(frozen=True)
class Look:
    """Tell how much has been worked so far; answered by `Moment`, also amidst a training."""


@dataclasses.dataclass(frozen=True)
class End:
    """End the process; answered by `Done`."""


@dataclasses.dataclass(frozen=True)
class Done:
    """It is done."""


Order = Train | Steps | Stop | Call | Look | End
Answer = Hello | Trains | Ran | Called | Moment | Done
