"""What a transport has to offer."""

import abc
import enum

import tensorflow as tf


class Collective(enum.StrEnum):
    """By which means TensorFlow's collectives move bytes."""

    RING = "ring"
    """gRPC, for CPUs."""

    NCCL = "nccl"
    """NVIDIA's library, for GPUs."""


class Reduction(enum.Enum):
    """How the tensors of the ranks become one; the value is TensorFlow's name for it."""

    SUM = "Add"
    PRODUCT = "Mul"
    MIN = "Min"
    MAX = "Max"


class Transport(abc.ABC):
    """Moves flat tensors between all workers.

    Every method must be called by all ranks, in the same order, with tensors of one length and
    dtype; it works eagerly and in a graph (loops and branches included). Within a graph, calls
    travel in program order.
    """

    name: str
    """What users see in messages and logs."""

    dtypes: frozenset[tf.DType]
    """What it carries; others have to be cast before."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    @abc.abstractmethod
    def all_reduce(self, flat: tf.Tensor, reduction: Reduction) -> tf.Tensor:
        """Reduces elementwise over the ranks.

        Args:
            flat: Shape (n,), n >= 0, a dtype of `dtypes`.
            reduction: How.

        Returns:
            The same shape and dtype, bit for bit the same on every rank.
        """

    @abc.abstractmethod
    def all_gather(self, flat: tf.Tensor) -> tf.Tensor:
        """Collects the tensors of all ranks.

        Args:
            flat: Shape (n,), n >= 0, a dtype of `dtypes`.

        Returns:
            Shape (size, n), in rank order.
        """

    @abc.abstractmethod
    def broadcast(self, flat: tf.Tensor, root_rank: int) -> tf.Tensor:
        """Gives every rank the tensor of one.

        Args:
            flat: Shape (n,), n >= 0, a dtype of `dtypes`; only the root's values matter.
            root_rank: Whose.

        Returns:
            The same shape and dtype, bit for bit what the root has.
        """

    def measure(self, wanted: bool) -> bool:
        """Starts or stops the clock that `seconds` reads; this rank's own affair.

        Returns:
            Whether collectives are measured now. They can't be where
            `tf.config.experimental.enable_op_determinism` has been called: TensorFlow then refuses
            to tell the time.
        """
        return wanted

    def seconds(self) -> float:
        """For how many seconds this rank has been in collectives while the clock ran.

        Zero for ever where nothing travels.
        """
        return 0.0

    def counts(self) -> tuple[int, int]:
        """How many operations have begun and ended on this rank; zeros where nobody counts.

        May be asked by any thread. All ranks begin the same operations, in the same order: so the
        one that has begun fewest is the one that others wait for.
        """
        return 0, 0
