"""Rank 0's address through MPI: the exchange between threads, and real mpiruns where there are."""

import dataclasses
import importlib.util
import operator
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import environments as env
from tests import namespaces
from tests.hosts import sshd, two_hosts
from tfddl._src.cluster import PartialCluster, detect
from tfddl._src.cluster.environments import mpi_address
from tfddl.errors import ClusterError

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import os, pathlib, sys
from tfddl._src import cluster
me = cluster.detect(os.environ)
assert cluster.detect(os.environ) == me
assert me.job
numbers = f"{me.rank} {me.size} {me.local_rank} {me.local_size} {me.master}"
pathlib.Path(sys.argv[1], str(me.rank)).write_text(numbers)
"""

needs_mpirun = pytest.mark.skipif(
    shutil.which("mpirun") is None, reason="needs mpirun (Debian: openmpi-bin)"
)
needs_mpi4py = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None, reason="needs mpi4py (pip install 'tfddl[mpi]')"
)


@dataclasses.dataclass
class World:
    """What the threads of a pretended MPI have in common."""

    size: int
    slots: list[Any] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = [None] * self.size
        self.barrier = threading.Barrier(self.size, timeout=60)


class Comm:
    """One rank of it."""

    def __init__(self, world: World, rank: int) -> None:
        self.world, self.rank, self.size = world, rank, world.size

    def _gather(self, value: Any) -> list[Any]:
        self.world.slots[self.rank] = value
        self.world.barrier.wait()
        values = list(self.world.slots)
        self.world.barrier.wait()
        return values

    def bcast(self, value: Any, root: int) -> Any:
        return self._gather(value)[root]

    def allreduce(self, value: Any, op: Callable[[Any, Any], Any]) -> Any:
        total, *rest = self._gather(value)
        for other in rest:
            total = op(total, other)
        return total


def pretended(world: World, rank: int) -> Any:
    return SimpleNamespace(COMM_WORLD=Comm(world, rank), SUM=operator.add)


def exchange(size: int, *, port: int = 0, trying: tuple[int, ...] = ()) -> list[str]:
    world = World(size)
    with ThreadPoolExecutor(size) as pool:
        ranks = [
            pool.submit(
                mpi_address._exchange,
                pretended(world, rank),
                port,
                tries=not trying or rank in trying,
            )
            for rank in range(size)
        ]
        return [rank.result() for rank in ranks]


def test_all_ranks_find_the_same_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_address, "_candidates", lambda: ("127.0.0.1",))
    found = exchange(4)
    assert len(set(found)) == 1
    host, port = found[0].rsplit(":", 1)
    assert host == "127.0.0.1"
    socket.create_server(("", int(port))).close()  # free again, without waiting


def test_the_first_address_that_all_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    # The first is nobody's (RFC 5737); the second is another program's, on the very port.
    other = socket.create_server(("127.0.0.2", 0))
    port = other.getsockname()[1]
    monkeypatch.setattr(mpi_address, "_WAIT_S", 0.5)
    monkeypatch.setattr(
        mpi_address, "_listen", lambda port: socket.create_server(("127.0.0.1", port))
    )
    hosts = ("192.0.2.77", "127.0.0.2", "127.0.0.1")
    monkeypatch.setattr(mpi_address, "_candidates", lambda: hosts)
    with other:
        assert set(exchange(3, port=port, trying=(0, 2))) == {f"127.0.0.1:{port}"}


def test_no_address_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpi_address, "_WAIT_S", 0.2)
    monkeypatch.setattr(mpi_address, "_candidates", lambda: ("192.0.2.77",))
    message = (
        r"^no address of rank 0 \(192\.0\.2\.77; port \d+\) can be reached from every host; is "
        r"there a firewall\? HINT: mpirun -x TFDDL_MASTER=hostA …"
    )
    with pytest.raises(ClusterError, match=message):
        exchange(2)


def test_the_port_is_taken() -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ClusterError, match=f"^rank 0 can't listen on port {port}: "):
            exchange(2, port=port)


def test_candidate_addresses_are_not_loopback() -> None:
    found = mpi_address._candidates()
    assert not [host for host in found if host.startswith("127.") or host == "::1"]
    assert "127.0.0.1" in mpi_address._of_interfaces()


def test_where_nobody_listens_nobody_is_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    assert not mpi_address._try_connect("127.0.0.1", port, b"nonce")


class PretendedMPI:
    """`mpi4py.MPI` of one process, which counts what is done to it."""

    THREAD_FUNNELED = 1

    def __init__(self, *, initialized: bool = False, finalized: bool = False) -> None:
        self.COMM_WORLD = SimpleNamespace(size=1)
        self.initialized, self.finalized = initialized, finalized

    def Is_initialized(self) -> bool:
        return self.initialized

    def Is_finalized(self) -> bool:
        return self.finalized

    def Init_thread(self, level: int) -> None:
        self.initialized = level == self.THREAD_FUNNELED

    def Finalize(self) -> None:
        self.finalized = True

    def Get_library_version(self) -> str:
        return "Some MPI v1\nand more"


def call(size: int) -> str | None:
    return mpi_address.exchange.__wrapped__(size, port=0, tries=True, source="X")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("initialized", [False, True])
def test_left_from_another_mpirun(initialized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mpi = PretendedMPI(initialized=initialized)
    monkeypatch.setattr(mpi_address, "_load", lambda: mpi)
    message = (
        "by X there are 4 workers, but 1 by MPI. They are left from another mpirun, or mpi4py is "
        "built for another MPI than this mpirun's (Some MPI v1). HINT: mpirun -x "
        "TFDDL_MASTER=hostA …, the host of rank 0, needs no MPI in the workers"
    )
    with pytest.raises(ClusterError, match=f"^{re.escape(message)}$"):
        call(4)
    assert mpi.finalized != initialized  # a script's own MPI goes on


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("initialized", [False, True])
def test_mpi_is_finalized_unless_it_is_the_scripts(
    initialized: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpi = PretendedMPI(initialized=initialized)
    monkeypatch.setattr(mpi_address, "_load", lambda: mpi)
    monkeypatch.setattr(mpi_address, "_exchange", lambda mpi, port, tries: "a:1")
    assert call(1) == "a:1"
    assert mpi.initialized
    assert mpi.finalized != initialized


@pytest.mark.usefixtures("installed")
def test_mpi_was_finalized(monkeypatch: pytest.MonkeyPatch) -> None:
    mpi = PretendedMPI(initialized=True, finalized=True)
    monkeypatch.setattr(mpi_address, "_load", lambda: mpi)
    with pytest.raises(ClusterError, match=r"HINT: call tfddl\.init\(\) before MPI\.Finalize\(\)"):
        call(4)


def test_mpi_isnt_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert call(4) is None


def test_mpi_cant_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    settings = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(rc=settings))
    monkeypatch.delitem(sys.modules, "mpi4py.MPI", raising=False)
    with pytest.raises(ClusterError, match="^mpi4py can't load MPI: "):
        call(4)
    # It would have started MPI, and ended it with the interpreter.
    assert (settings.initialize, settings.finalize) == (False, False)


@pytest.mark.parametrize(
    "gone", [{"PMIX_SERVER_TMPDIR": "/nowhere/pid.1"}, {"PMI_FD": "987654"}, {"PMI_FD": "x"}]
)
def test_an_mpirun_that_has_ended_isnt_asked(
    gone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mpi_address, "exchange", lambda *_, **__: pytest.fail("asked"))
    message = "but the mpirun that set them has ended, or isn't this process's own; MPI can't be "
    with pytest.raises(ClusterError, match=message):
        detect(env.OPEN_MPI_4 | gone)
    found = detect(env.OPEN_MPI_4 | gone | {"TFDDL_MASTER": "a"})
    assert isinstance(found, PartialCluster)


def mpirun(
    folder: Path, *words: str, before: tuple[str, ...] = (), python: tuple[str, ...] = ()
) -> tuple[list[str], str]:
    """What the ranks of a real mpirun have found: their numbers, and the one address."""
    path = ":".join([str(ROOT), *(entry for entry in sys.path if entry)])
    line = [*before, "mpirun", "--allow-run-as-root", "--oversubscribe", *words]
    line += ["-x", f"PYTHONPATH={path}", *python, sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = [file.read_text().rpartition(" ") for file in sorted(folder.iterdir())]
    (master,) = {master for _, _, master in found}
    return [numbers for numbers, _, _ in found], master


@needs_mpirun
@needs_mpi4py
def test_mpirun_with_mpi4py(tmp_path: Path) -> None:
    """On one host, of which each rank is told that it is alone there."""
    alone = ("env", "OMPI_COMM_WORLD_LOCAL_RANK=0", "OMPI_COMM_WORLD_LOCAL_SIZE=1")
    numbers, _ = mpirun(tmp_path, "-np", "3", python=alone)
    assert numbers == [f"{rank} 3 0 1" for rank in range(3)]


@needs_mpirun
@needs_mpi4py
def test_mpirun_between_two_hosts(tmp_path: Path) -> None:
    """`mpirun -H hostA:2,hostB:2 python script.py`, as Horovod's documentation has it."""

    def own(name: str, host: str) -> tuple[str, ...]:
        script = f'hostname {host}; exec "$@"'
        return (*namespaces.inside(name), "unshare", "--uts", "sh", "-c", script, "sh")

    found = tmp_path / "found"
    found.mkdir()
    first, second = namespaces.ADDRESSES
    with (
        two_hosts() as names,
        sshd(tmp_path / "ssh", address=second, inside=own(names[1], "hostB")) as ssh,
    ):
        words = ["-np", "4", "-H", f"{first}:2,{second}:2", "--mca", "plm_rsh_agent", ssh]
        for kind in ("btl", "oob"):
            words += ["--mca", f"{kind}_tcp_if_include", namespaces.LINK]
        numbers, master = mpirun(found, *words, before=own(names[0], "hostA"))
    assert numbers == [f"{rank} 4 {rank % 2} 2" for rank in range(4)]
    assert master.startswith(f"{first}:")
