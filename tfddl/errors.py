"""Every exception that a user of tfddl can meet.

Each one also inherits the builtin that a caller would expect, so that ``except ValueError``
works as usual::

    TfddlError
    ├── ClusterError (ValueError)         description of the cluster: TF_CONFIG, Slurm's variables
    ├── ShardingError (ValueError)        sizes, ranks or batches that data can't be divided by
    ├── DataError (ValueError)            the examples themselves: lengths, files, types
    ├── CheckpointError (ValueError)      a checkpoint: damaged, of another model, can't be written
    ├── NotInitializedError (ValueError)  tfddl.init() has not been called
    ├── StartError (RuntimeError)         init() can't start: too late, no GPU, a port taken
    ├── UnsupportedError (ValueError)     something that can't work; the message says what does
    │   └── UnimplementedError (NotImplementedError)  what could work, but isn't implemented
    ├── DisagreementError (RuntimeError)  ranks differ where they must be alike
    ├── PeerLostError (ConnectionError)   a worker that this one waits for has ended
    ├── StalledError (TimeoutError)       not all workers have called an operation in time
    │   └── DeadlockError (TimeoutError)  workers wait for each other, and none can go on
    ├── ConnectError (ConnectionError)    another process of the job can't be connected to
    │   └── UntrustedPeerError (ConnectionError)  what answers there belongs to another user
    ├── CommunicationError (RuntimeError) shared memory or TCP between workers doesn't work
    └── LaunchError (RuntimeError)        a job that can't be started, or a worker that failed
"""


class TfddlError(Exception):
    """Base of all errors raised by tfddl."""


# AutoGraph makes errors anew where they leave a tf.function: of their own class only if this is so,
# otherwise a StagingError (`ErrorMetadataBase.create_exception`,
# tensorflow/python/autograph/pyct/error_utils.py).
TfddlError.__init__ = Exception.__init__  # type: ignore[method-assign]


class ClusterError(TfddlError, ValueError):
    """The description of the cluster is wrong."""


class ShardingError(TfddlError, ValueError):
    """Data can't be divided by these numbers: sizes, ranks, batches, positions."""


class DataError(TfddlError, ValueError):
    """The given data can't be used."""


class CheckpointError(TfddlError, ValueError):
    """A checkpoint can't be read, written, or used for this training."""


class NotInitializedError(TfddlError, ValueError):
    """`tfddl.init()` has not been called in this process."""


class StartError(TfddlError, RuntimeError):
    """`tfddl.init()` can't start the runtime."""


class UnsupportedError(TfddlError, ValueError):
    """What was asked for can't work here; the message says what does."""


class UnimplementedError(UnsupportedError, NotImplementedError):
    """What was asked for could work, but isn't implemented; the message says what is."""


class DisagreementError(TfddlError, RuntimeError):
    """Ranks differ in something that must be alike on all of them."""


class PeerLostError(TfddlError, ConnectionError):
    """A worker that this one waits for has ended."""


class StalledError(TfddlError, TimeoutError):
    """Not all workers have called an operation in time."""


class DeadlockError(StalledError, TimeoutError):
    """Workers wait for each other in different operations, and none of them can go on."""


class ConnectError(TfddlError, ConnectionError):
    """Another process of the job can't be connected to.

    Attributes:
        has_answered: whether something listens at the address, be it a process of the job or not.
        is_refused: whether it is a process of the job, and refuses this one.
    """

    def __init__(
        self, message: str, *, has_answered: bool = False, is_refused: bool = False
    ) -> None:
        super().__init__(message)
        self.has_answered, self.is_refused = has_answered, is_refused


class UntrustedPeerError(ConnectError, ConnectionError):
    """Where a process of the job was expected, a process of another user answers."""


class CommunicationError(TfddlError, RuntimeError):
    """Workers can't share memory, or connect by TCP; the message says why."""


class LaunchError(TfddlError, RuntimeError):
    """A job can't be started, or one of its workers failed."""
