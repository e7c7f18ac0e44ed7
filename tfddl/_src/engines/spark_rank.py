"""The worker of one rank, on a host that an engine has chosen: its cluster, launcher and end."""

from __future__ import annotations

import base64
import pickle
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tfddl import __version__
from tfddl._src.cluster import SECRET
from tfddl._src.cluster.ports import free_ports
from tfddl._src.launcher import JobOptions
from tfddl._src.launcher.cores import Binding
from tfddl._src.launcher.environment import RESTARTS, Export
from tfddl._src.launcher.plan import HostAllocation
from tfddl._src.remote_call import task
from tfddl._src.remote_call.call_end import CallEnd, Failure
from tfddl._src.remote_call.pickling import add_paths, load_exception
from tfddl._src.remote_call.run import collect
from tfddl.errors import LaunchError

# Of what a message of the engine may hold; a longer exception is left out, and its text stays.
_MAX_EXCEPTION = 1 << 16


@dataclass(frozen=True)
class EngineJob:
    """What all ranks of a job get from the process that called `run`.

    Attributes:
        name: random; finds this job's failure among the messages of the engine.
        secret: with which the workers prove that they belong to the job, hexadecimal.
        call: the pickled call.
        env: environment variables of the workers.
        num_restarts: how often the job has started again.
        start_timeout_s: how long workers wait for each other in `tfddl.init()`; None leaves that to
            them.
        as_horovod: whether `import horovod` finds tfddl in the workers.
        version: the caller's version of tfddl.
    """

    name: str
    secret: str = field(repr=False)
    call: bytes = field(repr=False)
    env: Mapping[str, str]
    num_restarts: int = 0
    start_timeout_s: float | None = None
    as_horovod: bool = False
    version: str = __version__


class RankFailedError(RuntimeError):
    """Ends a task of the engine; its text is what users read there, and `find_failure` here."""


def exchange_addresses(
    rank: int, hosts: Sequence[str], all_gather: Callable[[str], Sequence[str]]
) -> list[tuple[str, int]]:
    """The host and port of every rank; all ranks call it together.

    Args:
        rank: this rank.
        hosts: the host of every rank.
        all_gather: gives all ranks the texts of all, in rank order.
    """
    # One rank chooses for its whole host: two could choose the same port at the same time.
    peers = [peer for peer, host in enumerate(hosts) if host == hosts[rank]]
    chosen = free_ports(len(peers)) if rank == peers[0] else ()
    gathered = all_gather(",".join(map(str, chosen)))
    ports: dict[int, int] = {}
    for first, text in enumerate(gathered):
        if text:
            same = [peer for peer, host in enumerate(hosts) if host == hosts[first]]
            ports.update(zip(same, map(int, text.split(",")), strict=True))
    return [(host, ports[peer]) for peer, host in enumerate(hosts)]


def run_rank(
    job: EngineJob,
    *,
    rank: int,
    addresses: Sequence[tuple[str, int]],
    env: Mapping[str, str],
) -> CallEnd:
    """Runs the worker of one rank to its end, in new processes of this host.

    Args:
        job: what the ranks have in common.
        rank: which of them this is.
        addresses: host and port of every rank.
        env: variables of this rank alone.

    Raises:
        LaunchError: This host has another version of tfddl.
    """
    if job.version != __version__:
        raise LaunchError(
            f"rank {rank} on {addresses[rank][0]} has tfddl {__version__}, but the caller "
            f"{job.version}. HINT: install the same on all hosts"
        )
    variables = {**job.env, **env, SECRET: job.secret, RESTARTS: str(job.num_restarts)}
    options = JobOptions(
        num_workers=1,
        command=task.command(sys.executable),
        as_horovod=job.as_horovod,
        binding=Binding.NONE,
        exports=tuple(Export(name, value) for name, value in variables.items()),
        allocations=tuple(
            HostAllocation("" if peer == rank else f"rank {peer}", host, (port,))
            for peer, (host, port) in enumerate(addresses)
        ),
        start_timeout_s=job.start_timeout_s,
    )
    return collect(add_paths(job.call, sys.path), options)


def failure_of(job: EngineJob, failure: Failure, *, host: str) -> RankFailedError:
    """The exception that ends a task: for people, and at its end for `find_failure`."""
    text = re.sub(r"\A(rank \d+) failed:", rf"\1 on {host} failed:", failure.text)
    exception = failure.exception
    if exception is not None and len(exception) > _MAX_EXCEPTION:
        exception = None
    data = base64.b64encode(pickle.dumps((text, exception))).decode()
    return RankFailedError(f"{text}\n[{job.name}:{data}]")


def find_failure(job: EngineJob, message: str) -> LaunchError | None:
    """The failure that a rank has reported through the engine, if it is in the message.

    Args:
        job: whose name is not to be guessed.
        message: what the engine says of the end of the job.
    """
    found = re.search(rf"\[{job.name}:([A-Za-z0-9+/=]+)\]", message)
    if found is None:
        return None
    text, exception = pickle.loads(base64.b64decode(found.group(1)))
    error = LaunchError(text)
    error.__cause__ = load_exception(exception)
    return error
