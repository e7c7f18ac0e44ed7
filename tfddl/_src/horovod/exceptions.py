"""The exceptions of elastic training (horovod/common/exceptions.py)."""


class HorovodInternalError(RuntimeError):
    """A collective failed. Never raised: `elastic.run` takes errors of `tfddl.errors` for it."""


class HostsUpdatedInterrupt(RuntimeError):
    """The set of hosts has changed; `elastic.run` handles it, also where a script raises it."""

    def __init__(self, skip_sync: bool = False) -> None:
        """Makes the exception.

        Args:
            skip_sync: Whether `elastic.run` continues without `State.sync`.
        """
        super().__init__("the set of hosts has changed")
        self.skip_sync = skip_sync


class RestartRequestedError(HostsUpdatedInterrupt):
    """`tfddlrun` is about to start the job again on the hosts that there are now."""
