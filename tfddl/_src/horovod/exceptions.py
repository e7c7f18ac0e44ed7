"""The exceptions that `elastic.run` knows."""


class HorovodInternalError(RuntimeError):
    """A collective failed, and the process can't go on; the launcher starts the job again."""


class HostsUpdatedInterrupt(RuntimeError):
    """Hosts have come or gone; nothing is lost."""

    def __init__(self, skip_sync: bool = False) -> None:
        """Takes whether the ranks are alike anyway.

        Args:
            skip_sync: Whether `elastic.run` need not make the states alike.
        """
        super().__init__("hosts have come or gone")
        self.skip_sync = skip_sync
