"""Where jobs run: this machine, or hosts that are reached by ssh."""

import dataclasses
import os
import sys

from tfddl._src.launcher.hosts import HostSlots, render_hosts, spread_slots


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """This machine, or what ``-H`` and ``--hostfile`` name.

    Attributes:
        hosts: empty for this machine.
        reach: flags of `tfddlrun` that say how hosts are reached.
        python: a Python with tfddl there.
    """

    hosts: tuple[HostSlots, ...] = ()
    reach: tuple[str, ...] = ()
    python: str = sys.executable

    def usual_workers(self, num_cores: int, *, is_quick: bool = False) -> tuple[int, ...]:
        """Numbers of workers that are measured where the user names none.

        Here 1, 2, 4, as far as this process may use so many cores, and 2 in any case. On hosts one
        per host, and one for each slot. The quick way is the smallest job with something to
        measure: one per host, two on one host.
        """
        slots = sum(host.slots for host in self.hosts)
        if is_quick:
            return (min(slots, max(2, len(self.hosts))) if self.hosts else 2,)
        if self.hosts:
            return tuple(dict.fromkeys((len(self.hosts), slots)))
        return tuple(n for n in (1, 2, 4) if n <= max(2, num_cores))

    def layout(self, num_workers: int) -> tuple[HostSlots, ...]:
        """Which host has how many of so many workers; raises LaunchError without enough slots."""
        if not self.hosts:
            return (HostSlots("localhost", num_workers),)
        return spread_slots(self.hosts, num_workers)

    def command(self, num_workers: int) -> tuple[str, ...]:
        """The beginning of a command line that runs a Python in so many workers.

        0 is one process with a host to itself: on this machine without `tfddlrun`.
        """
        if not self.hosts and not num_workers:
            return (sys.executable,)
        layout = self.layout(num_workers or 1)
        where = f"--hosts={render_hosts(layout)}" if self.hosts else f"--num-proc={num_workers}"
        # Killed with us; warnings about its ports would be seen by nobody.
        launcher = (sys.executable, "-m", "tfddl.launcher", f"--caller={os.getpid()}")
        return (*launcher, "--trusted-network", *self.reach, where, "--", self.python)
