"""The exceptions of elastic training (horovod/common/exceptions.py)."""


class HorovodInternalError(RuntimeError):
    """A collective failed. Never raised: here the launcher restarts all processes instead."""


class HostsUpdatedInterrupt(RuntimeError):
    """The set of hosts has changed. Never raised by tfddl; `elastic.run` handles a script's own."""

    def __init__(self, skip_sync: bool = False) -> None:
        """Makes the exception.

        Args:
            skip_sync: Whether `elastic.run` continues without `State.sync`.
        """
        super().__init__("the set of hosts has changed")
        self.skip_sync = skip_sync
