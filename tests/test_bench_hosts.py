"""tfddl-bench over hosts, which are names of this machine behind a stand-in for ssh."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.group import ROOT
from tests.hosts import HERE, stand_in
from tests.processes import wait_until
from tests.strangers import attacking
from tfddl._src.launcher.hosts import parse_hosts
from tfddl.bench.crew import Crew
from tfddl.bench.entrance import SECRET, connect, open_port, open_socket
from tfddl.bench.ground import Address, Hosts, addresses_towards
from tfddl.bench.machines import Machine, Machines, Met
from tfddl.bench.main import main, settings_from
from tfddl.bench.orders import LONE, Call, Called, Done, Look, Mode, Operation, Stop
from tfddl.bench.report import report
from tfddl.bench.results import Results
from tfddl.errors import DataError, LaunchError

COMMAND = [sys.executable, "-m", "tfddl.bench"]
TINY = ["--models=mlp", "--batch-size=2", "--rounds=2", "--round-seconds=0.1", "--starts=1"]
TWO = f"-H={HERE[0]}:1,{HERE[1]}:1"


def _ssh(folder: Path) -> str:
    return f"--ssh-command={stand_in(folder / 'ssh')}"


@pytest.mark.long
def test_two_hosts_are_measured_in_all_respects(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    done = subprocess.run(
        [*COMMAND, TWO, _ssh(tmp_path), *TINY, "--sizes=4K", f"--json={path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    # One per host, which is one for each slot, too.
    assert found["options"]["workers"] == [2]
    assert found["layouts"] == {"2": {HERE[0]: 1, HERE[1]: 1}}
    (machine,) = found["machines"]
    assert machine["hosts"] == list(HERE)
    for part in ("training", "collectives"):
        (taken,) = found["foreign_cores"][part].items()
        assert taken[0] == ", ".join(HERE)
        assert 0 <= taken[1] <= machine["cores"]
    transports = {entry["transport"] for entry in found["training"]}
    assert {s["transport"] for s in found["collectives"]} == transports
    assert not any("shared memory" == name for name in transports)  # Each is alone on its host.
    assert [added["workers"] for added in found["memory_sums"]] == [2]
    for speed in found["training"]:
        assert speed["lone_images_per_s"]["median"] > 0
        assert speed["parts"]["moving_s"] > 0
    assert [start["workers"] for start in found["starts"]][:2] == [0, 2]
    assert all(memory["lone_kept_bytes"] > 100e6 for memory in found["memory"])
    assert f"{', '.join(HERE)} (one machine): " in done.stdout
    assert f"Workers of {', '.join(HERE)}: 2 are 1 + 1." in done.stdout
    assert "than one plain process that tfddlrun starts on the first host" in done.stdout
    # Hosts were reached for the lone crew, each way, and the single process.
    asked = (tmp_path / "ssh/asked").read_text().split()
    assert asked.count(HERE[1]) == 1 + len(transports)
    assert asked.count(HERE[0]) == asked.count(HERE[1]) + 1


@pytest.fixture
def ground(tmp_path: Path) -> Hosts:
    """Two hosts with room for two workers each."""
    hosts = parse_hosts(f"{HERE[0]}:2,{HERE[1]}:2")
    return Hosts(hosts=hosts, reach=(_ssh(tmp_path),))


def test_a_worker_that_dies_is_named_with_its_host(ground: Hosts, tmp_path: Path) -> None:
    crew = Crew(
        LONE,
        team=ground.team(2),
        ground=ground,
        environment={**os.environ, "PYTHONPATH": str(ROOT)},
        directory=tmp_path,
    )
    name = f"rank 1 on {re.escape(HERE[1])}"
    with pytest.raises(LaunchError, match=rf"{name} has gone\. They said") as caught, crew:
        _ask_before_and_after_a_death(crew)
    assert f"tfddlrun: rank 1 on {HERE[1]} failed: killed by SIGKILL" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["ssh"]


def _ask_before_and_after_a_death(crew: Crew) -> None:
    order = Call(operation=Operation.ALLREDUCE, mode=Mode.GRAPH, num_bytes=4096, calls=3)
    assert all(isinstance(called, Called) for called in crew.ask(order))
    moments = crew.ask(Look())
    assert {moment.machine for moment in moments} == {Machine.here().identity}
    assert all(moment.ours_s > 0 for moment in moments)
    _check_secret([hello.pid for hello in crew.hellos])
    os.kill(crew.hellos[1].pid, signal.SIGKILL)
    crew.ask(order)


def _check_secret(pids: list[int]) -> None:
    """They have been told, and no command line shows it."""
    told = set()
    for pid in pids:
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        told |= {line.partition(b"=")[2] for line in lines if line.startswith(SECRET.encode())}
    (secret,) = told
    assert len(secret) == 64
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # It has ended meanwhile.
            assert secret not in path.read_bytes()


def test_who_can_not_be_reached_says_what_to_do(tmp_path: Path) -> None:
    """192.0.2.1 is nobody's, for ever; some systems know no way there, others wait in vain."""
    line = [TWO, _ssh(tmp_path), "--address=192.0.2.1:4711", "--start-timeout=3", "--only=start"]
    done = subprocess.run(
        [*COMMAND, *line], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "2 workers (lone): the job ended before it had started. They said" in done.stderr
    assert re.search(r"tfddlrun: rank \d on 127\.0\.0\.[23] failed: exit code 1", done.stderr)
    assert "tfddl-bench isn't found at 192.0.2.1:4711: " in done.stderr
    assert "HINT: tfddl-bench --address HOST[:PORT] names the address by which" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_however_it_ends_no_worker_stays_on_any_host(
    number: signal.Signals, tmp_path: Path
) -> None:
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        [*COMMAND, TWO, _ssh(tmp_path), "--only=collectives", "--rounds=1000", "--sizes=4K"],
        cwd=ROOT,
        env={**os.environ, "TFDDL_TEST_MARK": mark, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            assert any("round 1 of 1000" in line for line in process.stderr)
            # This one, and of two crews a launcher and two workers.
            assert len(_marked(mark)) >= 1 + 2 * 3
            process.send_signal(number)
            status = process.wait(timeout=60)
        finally:
            process.kill()
    assert status == (130 if number is signal.SIGINT else -signal.SIGKILL)
    wait_until(lambda: not _marked(mark), timeout_s=60)


def _marked(mark: str) -> list[int]:
    """The processes that have inherited it."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def test_only_who_knows_the_secret_comes_in() -> None:
    with open_port(["127.0.0.1", "127.0.0.1"]) as door:
        assert door.accept(wait_s=0.01) is None  # Nobody has come.
        port = int(door.name.rpartition(":")[2])
        assert door.name == f"127.0.0.1:{port},127.0.0.1:{port}"
        with _coming(door.name, {SECRET: "guessed"}, timeout_s=1) as failed:
            assert door.accept(wait_s=0.2) is None
        assert failed == [
            f"tfddl-bench isn't found at 127.0.0.1:{port}: what answers there hangs up: it is no "
            "process of this job, or of another one. HINT: tfddl-bench --address HOST[:PORT] names "
            "the address by which its hosts reach the machine that it runs on, and a port that "
            "firewalls let through"
        ]
        with attacking(("127.0.0.1", port)), _coming(door.name, door.environment) as failed:
            channel = door.accept(wait_s=40)
            assert channel is not None
            channel.send(Stop())
            assert channel.recv() == Done()
        assert failed == []
        with _coming(door.name, door.environment) as failed:
            assert door.accept(wait_s=0.2) is None
        assert len(failed) == 1
        assert "rank 1 is here already" in failed[0]
        channel.close()


def test_on_one_machine_nobody_listens_on_a_port() -> None:
    with open_socket() as door:
        assert door.name.startswith("@tfddl-bench-")
        with _coming(door.name, {SECRET: ""}, timeout_s=0.5) as failed:
            assert door.accept(wait_s=0.2) is None
        assert len(failed) == 1
        assert f"tfddl-bench isn't found at {door.name}: what answers there hangs up" in failed[0]
        with attacking(f"\0{door.name[1:]}"), _coming(door.name, door.environment) as failed:
            channel = door.accept(wait_s=40)
            assert channel is not None
            channel.send(Stop())
            assert channel.recv() == Done()
            channel.close()
        assert failed == []
    with pytest.raises(LaunchError, match=f"isn't found at {door.name}: Connection refused"):
        connect(door.name, rank=0, host=0, environment=door.environment, timeout_s=1)


@contextlib.contextmanager
def _coming(
    name: str, environment: dict[str, str], *, timeout_s: float = 40
) -> Iterator[list[str]]:
    """A worker that comes in as the second host, and takes an order; yields why it couldn't."""
    failed: list[str] = []

    def come() -> None:
        try:
            with connect(
                name, rank=1, host=1, environment=environment, timeout_s=timeout_s
            ) as channel:
                assert channel.recv() == Stop()
                channel.send(Done())
        except LaunchError as error:
            failed.append(str(error))

    thread = threading.Thread(target=come)
    thread.start()
    yield failed
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_nobody_or_somebody_else_is_found_at_an_address() -> None:
    known = {SECRET: "ours"}
    with socket.create_server(("127.0.0.1", 0)) as silent:
        name = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(LaunchError, match=r": no answer in time\. HINT"):
            connect(name, rank=0, host=0, environment=known, timeout_s=0.2)
    with pytest.raises(LaunchError, match=f"isn't found at {name}: Connection refused. HINT"):
        connect(name, rank=0, host=0, environment=known, timeout_s=40)
    with pytest.raises(LaunchError, match=r"isn't found at \[::1\]:1: "):
        connect("127.0.0.1:1,[::1]:1", rank=0, host=1, environment=known, timeout_s=40)


def test_where_it_listens() -> None:
    with open_port(["127.0.0.1", "127.0.0.5"]) as door:  # One address doesn't do.
        first, second = door.name.split(",")
        assert first.rpartition(":")[2] == second.rpartition(":")[2]
        environment = door.environment
        with _coming(door.name, environment):
            found = door.accept(wait_s=40)
            assert found is not None
            found.send(Stop())
            found.recv()
            found.close()
        port = int(first.rpartition(":")[2])
        with pytest.raises(LaunchError, match=rf"port {port} of x: Address already in use\. HINT"):
            open_port(["x"], port=port, everywhere=True)
    with open_port(["x"], port=port, everywhere=True) as again:  # What ended there is no matter.
        assert again.name == f"x:{port}"


def test_where_hosts_find_this_machine() -> None:
    assert addresses_towards(["127.0.0.2", "localhost"]) == ["127.0.0.1", "127.0.0.1"]
    with pytest.raises(LaunchError, match=r"by which address no-such\.invalid would reach this"):
        addresses_towards(["127.0.0.2", "no-such.invalid"])


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.5", Address("10.0.0.5")),
        ("10.0.0.5:4711", Address("10.0.0.5", 4711)),
        ("login.example.org:65535", Address("login.example.org", 65535)),
        ("[fd00::1]", Address("fd00::1")),
        ("[fd00::1]:1", Address("fd00::1", 1)),
    ],
)
def test_addresses_are_read(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["", "a:", ":1", "a:0", "a:65536", "fd00::1", "a b", "[g]", "a:b"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(DataError, match=f"--address is {re.escape(repr(text))}; expected a name"):
        Address.parse(text)


def test_teams(ground: Hosts) -> None:
    assert ground.usual_workers(64) == (2, 4)
    assert ground.fewest_workers == 2
    layouts = [[(host.name[-1], host.slots) for host in ground.team(n).hosts] for n in (1, 2, 3, 4)]
    assert layouts == [
        [("2", 1)],
        [("2", 1), ("3", 1)],
        [("2", 2), ("3", 1)],
        [("2", 2), ("3", 2)],
    ]
    team = ground.team(3)
    names = [team.name(rank) for rank in range(team.size)]
    assert names == [f"rank {rank} on {HERE[rank // 2]}" for rank in range(3)]
    assert [(host.name, host.slots) for host in ground.single().hosts] == [(HERE[0], 1)]
    assert f"--hosts={HERE[0]}:2,{HERE[1]}:1" in team.command
    one = dataclasses.replace(ground, hosts=parse_hosts("a:4"))
    assert (one.usual_workers(1), one.fewest_workers) == ((1, 4), 2)


def test_flags_for_hosts(tmp_path: Path) -> None:
    hostfile, key = tmp_path / "hosts", tmp_path / "key"
    hostfile.write_text("hostA slots=2\nhostB\n")
    key.write_text("")
    line = ["--hostfile", str(hostfile), "-p", "2222", "-i", str(key), "--remote-python", "/py"]
    ground = settings_from([*line, "--quick"], prog="x", num_cores=1).ground
    assert ground == Hosts(
        hosts=parse_hosts("hostA:2,hostB:1"),
        reach=(
            "--ssh-port=2222",
            f"--ssh-identity-file={key}",
            "--ssh-command=ssh",
            "--remote-python=/py",
        ),
        python="/py",
        connect_s=30.0,
    )
    settings = settings_from(["-H=a:2,b:2", "--address=c:1"], prog="x", num_cores=1)
    assert settings.workers == (2, 4)
    assert json.loads(json.dumps(settings.as_json()))["ground"]["address"]["port"] == 1
    assert settings_from(["-H=a,b,c", "--quick"], prog="x", num_cores=1).workers == (3,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-H=a:2,b:2", "--workers=2,5"], "5 workers don't fit on 2 hosts with 4 slots. HINT: "),
        (["-H=a:2,a:2"], "host a is named twice. HINT: a:4"),
        (["-H=a:2", "--hostfile=x"], "both -H and --hostfile name hosts"),
        (["--hostfile=/no/such"], "can't read the hostfile /no/such"),
        (["-H=a:2", "-p", "0"], "the ssh port (-p) is 0; it must be 1..65535"),
        (["-H=a:2", "--start-timeout=0"], "--start-timeout is 0.0; it must be above 0 seconds"),
        (["--address=a"], "--address is for hosts. HINT: -H hostA:2,hostB:2"),
        (["-H=a:2", "--address=a:b:c"], "--address is 'a:b:c'; expected a name or an address"),
        (["-H=no-such.invalid"], "by which address no-such.invalid would reach this machine"),
    ],
)
def test_what_hosts_can_not_be(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_machines_are_told_apart() -> None:
    machines = Machines()
    one = Machine(identity="1", processor="a processor", cores=(0, 1))
    other = Machine(identity="2", processor="another one", cores=(0, 1, 2, 3))
    machines.add("hostA", one)
    machines.add("hostA", one)
    machines.add("hostB", other)
    machines.add("hostC", dataclasses.replace(one, cores=(1, 2)))  # A container, with other cores.
    assert machines.met() == {
        "1": Met(hosts=("hostA", "hostC"), processor="a processor", cores=3),
        "2": Met(hosts=("hostB",), processor="another one", cores=4),
    }
    results = Results(
        versions={"tensorflow": "2.21.0"},
        machines=list(machines.met().values()),
        layouts={
            3: {"hostA": 1, "hostB": 1, "hostC": 1},
            1: {"hostA": 1},
        },
        foreign_cores={
            "training": {"hostA, hostC": 0.1, "hostB": 0.2},
            "collectives": {"hostA, hostC": 0.1, "hostB": 0.5},
        },
        seconds=9.0,
    )
    assert report(results).splitlines() == [
        "hostA, hostC (one machine): a processor, 3 cores.",
        "hostB: another one, 4 cores.",
        "tensorflow 2.21.0; 9 s.",
        "Workers of hostA, hostB, hostC: 3 are 1 + 1 + 1; 1 are 1 + 0 + 0.",
        "Meanwhile (training), others kept 0.10 of 3 cores of hostA, hostC, 0.20 of 4 cores of "
        "hostB busy.",
        "Meanwhile (collectives), others kept 0.10 of 3 cores of hostA, hostC, 0.50 of 4 cores of "
        "hostB busy: THESE TIMINGS SAY LITTLE. Run it again on quiet machines.",
    ]
