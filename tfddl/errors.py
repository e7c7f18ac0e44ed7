"""Every exception that a user of tfddl can meet.

Each one also inherits the builtin that a caller would expect, so that ``except ValueError``
works as usual::

    TfddlError
    ├── ClusterError (ValueError)         who takes part: TF_CONFIG, Slurm's or Open MPI's variables
    ├── ShardingError (ValueError)            arithmetic that can't be done: sizes, ranks, batches
    ├── DataError (ValueError)            the examples themselves: lengths, files, kinds
    ├── CheckpointError (ValueError)      a checkpoint: damaged, of another model, can't be written
    ├── NotInitializedError (ValueError)  tfddl.init() has not been called
    ├── StartError (RuntimeError)         init() can't start: too late, no GPU, a port taken
    ├── UnsupportedError (ValueError)     asked for something that can't work, with what to do
    │   └── UnimplementedError (NotImplementedError)  what could work, but isn't there
    ├── DisagreementError (RuntimeError)  ranks differ where they must be alike
    ├── PeerLostError (ConnectionError)   a worker that this one waits for has ended
    ├── StalledError (TimeoutError)       not all workers have come to an operation in time
    │   └── DeadlockError (TimeoutError)  workers wait for each other, and none can go on
    ├── ConnectError (ConnectionError)    a connection to another process that doesn't come about
    │   └── UntrustedPeerError (ConnectionError)  where it should be, there is one of another user
    ├── CommunicationError (RuntimeError)          the workers of a host can't share memory
    └── LaunchError (RuntimeError)        a job that can't be started, or a worker that failed
"""


class TfddlError(Exception):
    """Base of all errors raised by tfddl."""


class ClusterError(TfddlError, ValueError):
    """The description of the cluster is wrong."""


class ShardingError(TfddlError, ValueError):
    """A share of the data can't be computed from these numbers."""


class DataError(TfddlError, ValueError):
    """The data given can't be used."""


class CheckpointError(TfddlError, ValueError):
    """A checkpoint can't be read, written, or used for this training."""


class NotInitializedError(TfddlError, ValueError):
    """`tfddl.init()` has not been called in this process."""


class StartError(TfddlError, RuntimeError):
    """`tfddl.init()` can't start the runtime."""


class UnsupportedError(TfddlError, ValueError):
    """What was asked for can't work here; the message says what does."""


class UnimplementedError(UnsupportedError, NotImplementedError):
    """What was asked for could work, but hasn't been built; the message says what has."""


class DisagreementError(TfddlError, RuntimeError):
    """Ranks differ in something that has to be alike on all of them."""


class PeerLostError(TfddlError, ConnectionError):
    """A worker that this one waits for has ended."""


class StalledError(TfddlError, TimeoutError):
    """Not all workers have come to an operation in time."""


class DeadlockError(StalledError, TimeoutError):
    """Workers wait for each other in different operations, and none of them can go on."""


class ConnectError(TfddlError, ConnectionError):
    """A connection to another process of the job doesn't come about.

    Attributes:
        has_answered: whether something listens there, that may be it or not.
        is_refused: whether it is a process of the job, and refuses us.
    """

    def __init__(
        self, message: str, *, has_answered: bool = False, is_refused: bool = False
    ) -> None:
        super().__init__(message)
        self.has_answered, self.is_refused = has_answered, is_refused


class UntrustedPeerError(ConnectError, ConnectionError):
    """Where a process of the job was expected, there is one of another user."""


class CommunicationError(TfddlError, RuntimeError):
    """The workers of a host can't share memory; the message says why."""


class LaunchError(TfddlError, RuntimeError):
    """A job can't be started, or one of its workers failed."""
