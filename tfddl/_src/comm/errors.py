"""The errors of operations, as TensorFlow's users catch them too."""

import tensorflow as tf

from tfddl.errors import (
    DeadlockError,
    DisagreementError,
    PeerLostError,
    StalledError,
    UnsupportedError,
)


class DisagreementOpError(tf.errors.FailedPreconditionError, DisagreementError):
    """Ranks are about to do different things. All of them raise it, and the next operation works.

    It is the kind of error that Horovod's users catch, too. It is made as TensorFlow's errors are
    (node, op, message): TensorFlow makes it anew, with the same arguments, where it is raised while
    a `tf.function` is traced.
    """


class PeerLostOpError(tf.errors.UnavailableError, PeerLostError):
    """A rank that this one waits for has ended."""

    def __init__(self, message: str) -> None:
        tf.errors.UnavailableError.__init__(self, None, None, message)


class StalledOpError(tf.errors.DeadlineExceededError, StalledError):
    """Not all ranks have entered an operation in time."""

    def __init__(self, message: str) -> None:
        tf.errors.DeadlineExceededError.__init__(self, None, None, message)


class DeadlockOpError(StalledOpError, DeadlockError):
    """Ranks wait for each other in different operations, and none of them can go on."""


class NotAMemberOpError(tf.errors.InvalidArgumentError, UnsupportedError):
    """A rank has called an operation of a process set that it isn't in. No other rank hears of it.

    It is the kind of error that Horovod's users catch, too; it is made as `DisagreementOpError` is.
    """


class GraphDisagreementError(ValueError):
    """What a graph is told instead of a `DisagreementError`.

    TensorFlow makes an `tf.errors.InvalidArgumentError` of a ValueError, and an `UnknownError` of
    most others.
    """
