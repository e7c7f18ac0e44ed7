"""Where jobs run: this machine, or hosts that are reached by ssh."""

import dataclasses
import os
import sys

from tfddl._src.launcher.hosts import HostSlots, render_hosts, spread_slots

HERE = "localhost"
"""The host's name in results where the user has named none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """This machine, or what ``-H`` and ``--hostfile`` name."""

    hosts: tuple[HostSlots, ...] = ()
    """Empty: this machine."""

    reach: tuple[str, ...] = ()
    """Flags of `tfddlrun` that say how hosts are reached."""

    python: str = sys.executable
    """A Python with tfddl there."""

    def usual_workers(self, num_cores: int) -> tuple[int, ...]:
        """Numbers of workers that are measured where the user names none.

        Args:
            num_cores: How many this process may use.

        Returns:
            Here 1, 2, 4, as far as there are cores, and 2 in any case. On hosts one per host, and
            one for each slot.
        """
        if self.hosts:
            return tuple(dict.fromkeys((len(self.hosts), self._slots)))
        return tuple(n for n in (1, 2, 4) if n <= max(2, num_cores))

    @property
    def fewest_workers(self) -> int:
        """The smallest job with something to measure: one per host, two on one host."""
        return min(self._slots, max(2, len(self.hosts))) if self.hosts else 2

    def describe(self) -> str:
        """For messages, after "on"."""
        return render_hosts(self.hosts) if self.hosts else "this machine"

    def layout(self, num_workers: int) -> tuple[HostSlots, ...]:
        """Which host has how many of so many workers, in the order of their ranks.

        Raises:
            LaunchError: There are more workers than slots.
        """
        if not self.hosts:
            return (HostSlots(HERE, num_workers),)
        return spread_slots(self.hosts, num_workers)

    def command(self, num_workers: int) -> tuple[str, ...]:
        """The beginning of a command line that runs a Python in so many workers.

        Raises:
            LaunchError: There are more workers than slots.
        """
        return self._tfddlrun(self.layout(num_workers), num_workers)

    def single_command(self) -> tuple[str, ...]:
        """The same for one process with a host to itself: on this machine without `tfddlrun`."""
        if not self.hosts:
            return (sys.executable,)
        return self._tfddlrun((HostSlots(self.hosts[0].name, 1),), 1)

    def _tfddlrun(self, hosts: tuple[HostSlots, ...], num_workers: int) -> tuple[str, ...]:
        where = f"--hosts={render_hosts(hosts)}" if self.hosts else f"--num-proc={num_workers}"
        # Killed with us; warnings about its ports would be seen by nobody.
        launcher = (sys.executable, "-m", "tfddl.launcher", f"--caller={os.getpid()}")
        return (*launcher, "--trusted-network", *self.reach, where, "--", self.python)

    @property
    def _slots(self) -> int:
        return sum(host.slots for host in self.hosts)
