"""What `tfddl.init()` was asked for."""

import dataclasses
import math

from tfddl._src.comm.native import Timeouts
from tfddl._src.comm.process_group import InterHostTransport, Transport
from tfddl.errors import StartError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What `tfddl.init()` was asked for; None leaves the choice to us."""

    collective: Transport | None = None
    between_hosts: InterHostTransport | None = None
    intra_op_threads: int | None = None
    inter_op_threads: int | None = None
    timeout_s: float = 600.0

    deadlock_timeout_s: float = 600.0
    """After how long an operation fails where ranks wait for each other in different ones, and
    another thread of theirs could still enter it; 0 is never."""

    start_timeout_s: float | None = None
    """How long to wait for the other workers at the start; None for `timeout_s`."""

    stall_warning_s: float = 60.0
    """After how long to warn of ranks that haven't entered an operation; 0 is never."""

    trusts_network: bool = False
    """Whether nobody has to be warned that strangers can reach TensorFlow's servers."""

    cores: int | None = None
    """How many cores are this worker's own; None where nobody has divided them yet."""

    def __post_init__(self) -> None:
        for name in ("intra_op_threads", "inter_op_threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise StartError(f"{name} is {value}; it must be at least 1, or None.")
        if self.collective is not None and self.between_hosts is InterHostTransport.TCP:
            raise StartError(
                f"collective is {self.collective.value!r}, which all workers use, on whatever "
                "host; between_hosts='tcp' can be combined with collective='auto' only."
            )
        for name in ("timeout_s", "deadlock_timeout_s", "start_timeout_s", "stall_warning_s"):
            seconds = getattr(self, name)
            if seconds is not None and not 0 <= seconds < math.inf:
                raise StartError(f"{name} is {seconds}; it must be 0 (never) or more.")

    @property
    def rendezvous_timeout_s(self) -> float:
        """How long to wait for the others before the first operation; 0 is for ever."""
        return self.timeout_s if self.start_timeout_s is None else self.start_timeout_s

    @property
    def timeouts(self) -> Timeouts:
        """How long to wait for others in an operation."""
        return Timeouts(
            warn_s=self.stall_warning_s,
            abort_s=self.timeout_s,
            deadlock_s=self.deadlock_timeout_s,
        )
