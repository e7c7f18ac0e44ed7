"""Where crews run: on this machine, or on hosts."""

import abc
import dataclasses
import re
import sys

from tfddl._src.launcher.hosts import HostSlots, ranks_of, render_hosts, spread_slots
from tfddl._src.launcher.interfaces import address_towards
from tfddl.bench.entrance import Entrance, open_port, open_socket
from tfddl.errors import DataError, LaunchError

# Workers keep to cores by themselves, alike with every launcher; and nobody sees its warnings.
_TFDDLRUN = (sys.executable, "-m", "tfddl.launcher", "--bind=none", "--trusted-network")
_START_S = 300.0

HERE = "localhost"
"""How results call this machine where nobody has named it."""

_ADDRESS = re.compile(r"(\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^\[\]:\s]+))(:(?P<port>\d{1,5}))?")
_LAST_PORT = 65535


@dataclasses.dataclass(frozen=True, kw_only=True)
class Team:
    """Workers that are started together."""

    hosts: tuple[HostSlots, ...]
    """Where they run, and how many there, in the order of their ranks."""

    command: tuple[str, ...]
    """What starts them: the beginning of a command line that ends with what each of them runs."""

    is_launched: bool = True
    """Whether that is `tfddlrun`; otherwise the worker itself, as any program."""

    @property
    def size(self) -> int:
        """How many they are."""
        return sum(host.slots for host in self.hosts)

    def name(self, rank: int) -> str:
        """How messages call a worker."""
        host = self.host(rank)
        return f"rank {rank} on {host}" if len(self.hosts) > 1 else f"rank {rank}"

    def host(self, rank: int) -> str:
        """The host of a worker."""
        return next(name for name, ranks in ranks_of(self.hosts).items() if rank in ranks)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ground(abc.ABC):
    """Where workers run, and how they are started there."""

    @property
    @abc.abstractmethod
    def start_s(self) -> float:
        """How long a start may take at most."""

    @property
    @abc.abstractmethod
    def fewest_workers(self) -> int:
        """With how many of them something can be seen."""

    @abc.abstractmethod
    def usual_workers(self, num_cores: int) -> tuple[int, ...]:
        """Numbers of workers that are worth being measured.

        Args:
            num_cores: How many this process may use.
        """

    @abc.abstractmethod
    def describe(self) -> str:
        """What it is, for messages; after "on"."""

    @abc.abstractmethod
    def team(self, num_workers: int) -> Team:
        """So many workers, one beside the other.

        Raises:
            LaunchError: There is no room for them.
        """

    @abc.abstractmethod
    def single(self) -> Team:
        """One worker as simply as it can be started, to compare a team's start with."""

    @abc.abstractmethod
    def open_entrance(self, team: Team) -> Entrance:
        """Opens what a team comes in by.

        Args:
            team: Who.

        Raises:
            LaunchError: They couldn't come in.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThisMachine(Ground):
    """This one, and no other."""

    @property
    def start_s(self) -> float:
        """See `Ground.start_s`."""
        return _START_S

    @property
    def fewest_workers(self) -> int:
        """Two."""
        return 2

    def usual_workers(self, num_cores: int) -> tuple[int, ...]:
        """1, 2, 4, up to the number of cores and to 4; 2 in any case."""
        return tuple(n for n in (1, 2, 4) if n <= max(2, num_cores))

    def describe(self) -> str:
        """See `Ground.describe`."""
        return "this machine"

    def team(self, num_workers: int) -> Team:
        """See `Ground.team`."""
        return Team(
            hosts=(HostSlots(HERE, num_workers),),
            command=(*_TFDDLRUN, f"--num-proc={num_workers}", "--", sys.executable),
        )

    def single(self) -> Team:
        """Without `tfddlrun`."""
        return Team(hosts=(HostSlots(HERE, 1),), command=(sys.executable,), is_launched=False)

    def open_entrance(self, team: Team) -> Entrance:
        """A socket."""
        return open_socket()


@dataclasses.dataclass(frozen=True)
class Address:
    """Where hosts find the machine that `tfddl-bench` runs on."""

    host: str
    """A name or an address."""

    port: int = 0
    """0 is any that is free."""

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads "10.0.0.5", "10.0.0.5:4711", "login", "[fd00::1]:4711".

        Raises:
            DataError: It is none.
        """
        found = _ADDRESS.fullmatch(text)
        if not found or int(found["port"] or 1) not in range(1, _LAST_PORT + 1):
            raise DataError(
                f"--address is {text!r}; expected a name or an address of this machine, with a "
                "port or without: 10.0.0.5, 10.0.0.5:4711, [fd00::1]:4711."
            )
        return cls(found["v6"] or found["host"], int(found["port"] or 0))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hosts(Ground):
    """What ``-H`` or ``--hostfile`` names; workers are spread over them evenly."""

    hosts: tuple[HostSlots, ...]
    reach: tuple[str, ...] = ()
    """Flags of `tfddlrun` that say how they are reached."""

    python: str = sys.executable
    """A Python with tfddl there."""

    connect_s: float = 0.0
    """How long they may take to answer."""

    address: Address | None = None
    """Where they find this machine; None to find that out."""

    @property
    def start_s(self) -> float:
        """See `Ground.start_s`."""
        return _START_S + 2 * self.connect_s  # To answer, and in `tfddl.init()`.

    @property
    def fewest_workers(self) -> int:
        """One per host; two on one."""
        return min(self._slots, max(2, len(self.hosts)))

    def usual_workers(self, num_cores: int) -> tuple[int, ...]:
        """One per host, and one for each slot."""
        return tuple(dict.fromkeys((len(self.hosts), self._slots)))

    def describe(self) -> str:
        """See `Ground.describe`."""
        return render_hosts(self.hosts)

    def team(self, num_workers: int) -> Team:
        """One to each host that has room, round by round; ranks fill host after host."""
        return self._on(spread_slots(self.hosts, num_workers))

    def single(self) -> Team:
        """On the first host, by `tfddlrun`, too."""
        return self._on((HostSlots(self.hosts[0].name, 1),))

    def open_entrance(self, team: Team) -> Entrance:
        """A port."""
        if self.address is not None:
            addresses = [self.address.host] * len(team.hosts)
            return open_port(addresses, port=self.address.port, everywhere=True)
        return open_port(addresses_towards([host.name for host in team.hosts]))

    @property
    def _slots(self) -> int:
        return sum(host.slots for host in self.hosts)

    def _on(self, hosts: tuple[HostSlots, ...]) -> Team:
        command = (*_TFDDLRUN, *self.reach, f"--hosts={render_hosts(hosts)}", "--", self.python)
        return Team(hosts=hosts, command=command)


def addresses_towards(hosts: list[str]) -> list[str]:
    """By which of this machine's addresses each host reaches it.

    A host that is this machine takes the same as the others where it can, so that one will do.

    Raises:
        LaunchError: There is no way to a host.
    """
    found = {host: address_towards(host) for host in hosts}
    lost = [host for host, address in found.items() if address is None]
    if lost:
        raise LaunchError(
            f"can't tell by which address {', '.join(lost)} would reach this machine, since no "
            "such name or no way there is known here. HINT: --address HOST names it"
        )
    outer = [address for address in found.values() if address and not address.is_loopback]
    return [
        str(outer[0] if outer and address and address.is_loopback else address)
        for address in found.values()
    ]
