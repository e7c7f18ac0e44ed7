"""Jobs on other hosts: through a stand-in for ssh, a real sshd, and network namespaces."""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import pytest

import tfddl
from tests import namespaces
from tests.hosts import HERE, TWO, sshd, stand_in, two_hosts
from tests.launching import LAUNCHER, TIMEOUT_S, launch, launched, pids, worker
from tests.processes import in_sessions, is_running, stop, wait_until
from tfddl._src.cpu import num_quota_cores
from tfddl._src.launcher import remote_client
from tfddl._src.launcher.exposure import firewall_line
from tfddl._src.launcher.plan import ProcessPlan
from tfddl._src.launcher.ssh import SshOptions
from tfddl._src.launcher.worker_handle import LOST

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = [
    "$(touch /tmp/tfddl-hostile)",
    "`id`",
    "a b",
    "",
    "-oProxyCommand=x",
    "it's",
    '"',
    "\\",
    "!",
    "*",
    "\n",
    "é",
    ";",
    "#",
    "--",
    b"\xff\xfe".decode("utf-8", "surrogateescape"),
]


def test_what_is_hostile_arrives_unharmed(ssh: str, tmp_path: Path) -> None:
    folder = tmp_path / "it's $(a)\n folder"
    folder.mkdir()
    variables = {f"HOSTILE_{n}": text for n, text in enumerate(HOSTILE)}
    script = """
found = {n: v for n, v in os.environ.items() if n.startswith("HOSTILE_")}
text = json.dumps([sys.argv[1:], os.getcwd(), found, task, os.environ.get("LATER")])
Path(f"rank.{rank}").write_text(text)
sys.stdout.buffer.write(b"\\xff\\x00 out\\r\\n\\r\\n")
sys.stderr.buffer.write(b"err without end")
assert os.environ.get("SSH_ORIGINAL") is None and os.environ["SENT"] == "yes"
assert os.environ["HOME"] != "/no home of ours", os.environ["HOME"]
"""
    sent = ["-x", "LATER=a=b", "-x", "SENT", "--ssh-command", ssh, "--output-filename", "logs"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            **variables,
            "SENT": "yes",
            "HOME": "/no home of ours",
            "SSH_ORIGINAL": "of this login",
        }.items():
            patch.setenv(name, value)
        done = launch(*TWO, *sent, *worker(script), *HOSTILE, cwd=folder)
    assert done.returncode == 0, done.stderr
    addresses = set()
    for rank in range(3):
        found = json.loads((folder / f"rank.{rank}").read_text())
        assert found[0] == HOSTILE
        assert found[1] == str(folder)
        assert found[2] == variables
        assert found[3]["task"]["index"] == rank
        assert found[4] == "a=b"
        addresses.add(tuple(found[3]["cluster"]["worker"]))
        logs = folder / "logs" / f"rank.{rank}"
        assert (logs / "stdout").read_bytes() == b"\xff\x00 out\r\n\r\n"
        assert (logs / "stderr").read_bytes() == b"err without end"
        for path in (logs.parent, logs, logs / "stdout", logs / "stderr"):
            assert path.stat().st_mode & 0o077 == 0, path
    (one,) = addresses  # the same list for all
    assert [address.rpartition(":")[0] for address in one] == [HERE[0], HERE[0], HERE[1]]
    assert sorted(done.stderr.splitlines()) == [f"[{rank}] err without end" for rank in range(3)]
    assert not Path("/tmp/tfddl-hostile").exists()


def test_the_first_failure_is_told_with_its_host(ssh: str, tmp_path: Path) -> None:
    script = """
if rank == 2:
    wait_for("rank 0 is ready"); wait_for("rank 1 is ready")
    print("my own mistake", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGSEGV)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    say(f"daemon {rank} is ready")
    time.sleep(60)
wait_for(f"daemon {rank} is ready")
say(f"rank {rank} is ready")
time.sleep(60)
"""
    options = (*TWO, "--ssh-command", ssh, "--grace-period", "0.5")
    done = launch(*options, *worker(script), cwd=tmp_path)
    assert done.returncode == 128 + signal.SIGSEGV
    lines = [line for line in done.stderr.splitlines() if line.startswith("tfddlrun: ")]
    assert lines[0].startswith(f"tfddlrun: rank 2 on {HERE[1]} failed: killed by SIGSEGV after ")
    assert "tfddlrun:   my own mistake" in lines
    assert lines[-1] == "tfddlrun: after that, ended by tfddlrun: rank 0, 1"
    names = [f"{what} {rank} is ready" for rank in range(2) for what in ("rank", "daemon")]
    assert not [pid for pid in pids(tmp_path, *names) if is_running(pid)]


WAIT = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_DFL)
say(f"rank {rank} is ready")
Path(f"parent.{rank}").write_text(str(os.getppid()))
time.sleep(90)
"""
READY = tuple(f"rank {rank} is ready" for rank in range(3))


def test_ctrl_c_ends_all_hosts(ssh: str, tmp_path: Path) -> None:
    with launched(*TWO, "--ssh-command", ssh, *worker(WAIT), cwd=tmp_path) as process:
        left = pids(tmp_path, *READY)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert err == "tfddlrun: ended by SIGINT, and all workers with it\n"
    assert not in_sessions(left)


def test_a_host_that_is_lost_ends_the_job(ssh: str, tmp_path: Path) -> None:
    with launched(*TWO, "--ssh-command", ssh, *worker(WAIT), cwd=tmp_path) as process:
        left = pids(tmp_path, *READY)
        wait_until(lambda: (tmp_path / "parent.2").exists())
        os.kill(int((tmp_path / "parent.2").read_text() or "0"), signal.SIGKILL)  # the agent
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 255
    assert f"tfddlrun: rank 2 on {HERE[1]} failed: lost with its host after" in err
    assert f"tfddlrun: the connection to {HERE[1]} has ended" in err
    wait_until(lambda: not in_sessions(left))


def test_lines_are_never_torn(tmp_path: Path) -> None:
    script = """
for n in range(300):
    for stream in (sys.stdout, sys.stderr):
        line = f"{n} " + chr(97 + rank) * 3000
        for start in range(0, len(line), 999):  # several writes per line
            stream.write(line[start : start + 999])
        stream.write("\\n")
"""
    options = (*TWO, "--ssh-command", stand_in(tmp_path / "ssh"))
    done = launch(*options, *worker(script), cwd=tmp_path)
    assert done.returncode == 0
    expected = [f"[{rank}] {n} " + chr(97 + rank) * 3000 for rank in range(3) for n in range(300)]
    assert sorted(done.stdout.splitlines()) == sorted(expected)
    assert sorted(done.stderr.splitlines()) == sorted(expected)


def test_what_a_shell_says_first_does_no_harm(tmp_path: Path) -> None:
    before = """sh -c 'echo Welcome; echo to this host >&2; exec "$@"' -"""
    options = (*TWO, "--ssh-command", stand_in(tmp_path / "ssh", before=before))
    done = launch(*options, *worker("print('hello')"), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [f"[{rank}] hello" for rank in range(3)]


def test_a_port_that_is_taken_there_starts_again(tmp_path: Path) -> None:
    script = """
if rank == 2 and not Path("tried").exists():
    say("tried")
    sys.exit("Could not start gRPC server")
"""
    options = (*TWO, "--ssh-command", stand_in(tmp_path / "ssh"))
    done = launch(*options, *worker(script), cwd=tmp_path)
    assert done.returncode == 0
    assert "was taken by another process meanwhile; starting again on other ports" in done.stderr


OLD_AGENT = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT)!r})
from tfddl._src.launcher.frames import HELLO, pack
sys.stdout.buffer.write(HELLO + pack({{"is": "hello", "version": "0.0.1"}}))
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("case", "line", "message"),
    [
        (
            {"down": HERE[1]},
            (),
            f"tfddlrun: rank 2 can't start: can't reach {HERE[1]} by ssh: ssh: connect to host "
            f"{HERE[1]} port 22: No route to host. HINT: this has to work without asking anything:",
        ),
        (
            {},
            ("--remote-python", "/no such/python"),
            f"rank 0, 1 can't start: can't start /no such/python on {HERE[0]}: ",
        ),
        (
            {},
            ("--remote-python", "false"),
            f"the agent on {HERE[0]} ended with 1: it said nothing. HINT: tfddl has to be",
        ),
        (
            {},
            ("--remote-python", "OLD"),
            f"{HERE[0]} has tfddl 0.0.1, but this host {tfddl.__version__}. HINT: install the same",
        ),
        (
            {"before": "sh -c 'echo Password:; exec sleep 60'"},
            ("--start-timeout", "1"),
            f"{HERE[1]} writes 'Password:' instead of an agent's greeting within 1 s (--start",
        ),
        (
            {"before": "sleep 60 #"},
            ("--elastic-timeout", "0.5"),
            f"rank 2 can't start: {HERE[1]} doesn't answer within 0.5 s (--start-timeout)",
        ),
        (
            {},
            ("--network-interface", "ib7"),
            f"on {HERE[0]}, no interface ib7 with an address (--network-interface); there are lo (",
        ),
    ],
)
def test_hosts_that_cant_take_part_are_named_before_anything_starts(
    case: dict[str, str], line: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    old.write_text(OLD_AGENT)
    old.chmod(0o755)
    line = tuple(str(old) if word == "OLD" else word for word in line)
    options = (*TWO, "--ssh-command", stand_in(tmp_path / "ssh", **case), *line)
    done = launch(*options, *worker("say('started')"), cwd=tmp_path)
    assert done.returncode == 127
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "started").exists()


def test_a_command_that_cant_be_started_there(tmp_path: Path) -> None:
    options = (*TWO, "--ssh-command", stand_in(tmp_path / "ssh"))
    done = launch(*options, "./no such", cwd=tmp_path)
    assert done.returncode == 127
    assert re.match(r"tfddlrun: on 127\.0\.0\.[23], can't start '\./no such': No such", done.stderr)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    before = f"sh -c 'rmdir {gone} 2>/dev/null; exec \"$@\"' -"
    options = (*TWO, "--ssh-command", stand_in(tmp_path / "ssh", before=before))
    done = launch(*options, "true", cwd=gone)
    assert done.returncode == 127
    assert f"on {HERE[1]}, can't enter the folder {gone}: No such file" in done.stderr


@pytest.mark.parametrize(("line", "status"), [((), 127), (("--dry-run",), 2), (("--check",), 2)])
def test_a_working_folder_that_is_not_there(
    line: tuple[str, ...], status: int, tmp_path: Path
) -> None:
    options = (*TWO, "--ssh-command", stand_in(tmp_path / "ssh"), *line)
    gone = tmp_path / "gone"
    gone.mkdir()
    command = [*LAUNCHER, *options, "true"]
    # Entered, and then removed, as by another shell.
    done = subprocess.run(
        ["sh", "-c", 'rmdir "$PWD"; exec "$0" "$@"', *command],
        cwd=gone,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PWD": str(gone)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == status
    assert "can't find the working directory to start workers in: No such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_while_connecting(tmp_path: Path) -> None:
    before = f"sh -c 'touch {tmp_path}/asked; exec sleep 60'"
    ssh = stand_in(tmp_path / "ssh", before=before)
    with launched(*TWO, "--ssh-command", ssh, "true", cwd=tmp_path) as process:
        wait_until(lambda: (tmp_path / "asked").exists())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert err == "tfddlrun: ended by SIGINT, and all workers with it\n"


def test_this_host_needs_no_ssh(tmp_path: Path) -> None:
    script = "print(task['cluster']['worker'][rank].rpartition(':')[0])"
    done = launch("-H", "localhost:2", "--ssh-command", "false", *worker(script), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["[0] 127.0.0.1", "[1] 127.0.0.1"]
    ssh = stand_in(tmp_path / "ssh")
    line = ("-H", f"localhost:1,{HERE[0]}:1", "--ssh-command", ssh, *worker(script))
    done = launch(*line, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["[0] localhost", f"[1] {HERE[0]}"]
    assert (tmp_path / "ssh/asked").read_text().split() == [HERE[0]]


def test_horovod_scripts_run_on_hosts(tmp_path: Path) -> None:
    script = """
names = "RANK SIZE LOCAL_RANK LOCAL_SIZE CROSS_RANK CROSS_SIZE HOSTNAME".split()
print(*(os.environ[f"HOROVOD_{name}"] for name in names))
assert os.environ["PYTHONPATH"].split(":")[0].endswith("tfddl/_src/horovod/site")
"""
    options = (*TWO, "--horovod", "--ssh-command", stand_in(tmp_path / "ssh"))
    done = launch(*options, "--max-restarts", "1", *worker(script), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [
        f"[0] 0 3 0 2 0 2 {HERE[0]}",
        f"[1] 1 3 1 2 0 1 {HERE[0]}",
        f"[2] 2 3 0 1 1 2 {HERE[1]}",
    ]
    shown = launch(*options, "--dry-run", "true", cwd=tmp_path).stdout
    assert shown.count("HOROVOD_LOCAL_SIZE=2") == 2
    assert shown.count("tfddl/_src/horovod/site") == 3


def test_addresses_of_an_interface(tmp_path: Path) -> None:
    script = "print(task['cluster']['worker'][rank].rpartition(':')[0])"
    options = (*TWO, "--network-interfaces", "ib7,lo", "--ssh-command", stand_in(tmp_path / "ssh"))
    done = launch(*options, *worker(script), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [f"[{rank}] 127.0.0.1" for rank in range(3)]


def test_a_host_that_takes_nothing_is_lost_but_not_one_that_is_slow() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_client, "_SEND_S", 0.2)
        with closing(_client("exec sleep 30")) as deaf:
            plan = ProcessPlan(rank=0, argv=("true",), environment={}, host=HERE[0])
            before = deaf.start(plan, [])
            for _ in range(3):
                deaf.send({"do": "take commit"}, bytes(1 << 20))
            assert deaf.lost == f"{HERE[0]} has taken no message for 10 s"
            # That may be while the console waits in the middle of a line: only a turn may end a
            # worker's output, which shows what it had begun to write.
            assert (before.lost, before.ended_s) == (None, None)
            deaf.turn(is_readable=False)
            assert (before.lost, before.returncode) == (deaf.lost, LOST)
            # Nor are workers that are started there any more.
            worker = deaf.start(plan, [])
            assert (worker.lost, worker.returncode, worker.is_done) == (deaf.lost, LOST, True)
    with closing(_client("exec dd of=/dev/null status=none")) as slow:
        with pytest.MonkeyPatch.context() as patch:
            clock = itertools.count(step=6)  # Soon more than 10 s, for all of it.
            patch.setattr(
                remote_client, "time", SimpleNamespace(monotonic=lambda: float(next(clock)))
            )
            slow.send({"do": "take commit"}, bytes(4 << 20))
        assert slow.lost is None


def _client(line: str) -> remote_client.RemoteAgentClient:
    """A connection to what a shell runs in place of an agent."""
    return remote_client.RemoteAgentClient(
        HERE[0], SshOptions(command=("sh", "-c", line)), is_here=False
    )


def test_dry_run_prints_lines_that_run(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    ssh = stand_in(tmp_path / "ssh")
    command = ["sh", "-c", "echo $TF_CONFIG; pwd; echo $WHAT $1 $TFDDL_START_TIMEOUT", "x", "it's"]
    for hosts, names in ((TWO, [HERE[0], HERE[0], HERE[1]]), (("-np", "2"), ["127.0.0.1"] * 2)):
        options = ("--dry-run", "-x", "WHAT=a  b", "--elastic-timeout", "9", "--ssh-command", ssh)
        done = launch(*hosts, *options, *command, cwd=folder)
        assert (done.returncode, done.stderr) == (0, "")
        assert not (tmp_path / "ssh/asked").exists()
        lines = [line for line in done.stdout.splitlines() if line.startswith("cd ")]
        assert len(lines) == len(names)
        for rank, shown in enumerate(lines):
            ran = subprocess.run(shown, shell=True, capture_output=True, text=True, timeout=60)
            config, where, said = ran.stdout.splitlines()
            assert json.loads(config)["task"]["index"] == rank
            assert where == str(folder)
            assert said == "a b it's 9"
        found = [a.rpartition(":")[0] for a in json.loads(config)["cluster"]["worker"]]
        assert found == names
    done = launch(*TWO, "--dry-run", "--ssh-command", ssh, "true", cwd=folder)
    (far,) = [line for line in done.stdout.splitlines() if f"-- {HERE[1]} " in line]
    boot = json.dumps([str(ROOT)]).encode() + b"\n"
    agent = subprocess.run(far, shell=True, input=boot, capture_output=True, timeout=60)
    assert b"tfddl agent" in agent.stdout, agent.stderr


def test_each_worker_has_its_own_cores(tmp_path: Path) -> None:
    usable = os.sched_getaffinity(0)
    script = "print(sorted(os.sched_getaffinity(0)), os.environ.get('TFDDL_CORES'))"
    each = len(usable) // 2
    done = launch("-np", "2", *worker(script), cwd=tmp_path)
    shares = [set(json.loads(line[4:].rpartition(" ")[0])) for line in done.stdout.splitlines()]
    if each:
        assert [len(share) for share in shares] == [each, each]
        assert not shares[0] & shares[1]
        assert shares[0] | shares[1] <= usable
        granted = min(each, num_quota_cores(among=2))
        assert all(line.endswith(f" {granted}") for line in done.stdout.splitlines())
    crowd = len(usable) + 1
    for options in (("--bind", "none", "-np", "2"), ("-np", str(crowd))):
        done = launch(*options, *worker(script), cwd=tmp_path)
        seen = {line.partition(" ")[2] for line in done.stdout.splitlines()}
        assert seen == {f"{sorted(usable)} None"}  # nobody has divided them


@pytest.mark.parametrize(
    "hosts", [("-np", "1"), ("-H", "localhost:1", "--network-interface", "lo")]
)
def test_a_job_within_a_worker_knows_nothing_of_that_ones_cores(
    hosts: tuple[str, ...], tmp_path: Path
) -> None:
    inner = [*LAUNCHER, "--bind", "none", *hosts]
    for options, expected in (((), "None"), (("-x", "TFDDL_CORES=7"), "7")):
        line = [*inner, *options, *worker("print(os.environ.get('TFDDL_CORES'))")]
        done = launch("-np", "1", *line, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"[0] [0] {expected}\n")


def test_who_has_not_come_is_said_within_the_start_timeout(tmp_path: Path) -> None:
    script = """
if rank:
    time.sleep(60)
import tfddl
tfddl.init()
"""
    command = [sys.executable, "-c", worker(script)[-1]]
    with launched("-np", "3", "--start-timeout", "2", *command, cwd=tmp_path) as process:
        _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert "gave up after 2 s: rank 0 of 3 is waiting for rank 1 (127.0.0.1:" in err
    assert ", rank 2 (127.0.0.1:" in err


@pytest.mark.long
def test_a_reader_that_sleeps_does_not_end_a_job(tmp_path: Path) -> None:
    script = "print('x' * 1000000)\nsay(f'done {rank}')"
    options = (*TWO, "--ssh-command", stand_in(tmp_path / "ssh"))
    with launched(*options, *worker(script), cwd=tmp_path) as process:
        time.sleep(26)  # longer than the agents' patience
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert (process.returncode, err) == (0, "")
    assert out.count("x") == 3_000_000


@pytest.mark.long
def test_a_stopped_tfddlrun_loses_its_workers(tmp_path: Path) -> None:
    options = (*TWO, "--ssh-command", stand_in(tmp_path / "ssh"))
    with launched(*options, *worker(WAIT), cwd=tmp_path) as process:
        left = pids(tmp_path, *READY)
        (inner,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        stop(int(inner))
        wait_until(lambda: not in_sessions(left), timeout_s=60.0)
        os.kill(int(inner), signal.SIGCONT)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 255
    assert re.search(r"tfddlrun: the connection to 127\.0\.0\.[23] has ended", err)


@pytest.mark.parametrize(
    ("peers", "is_open"), [([], False), (["10.77.0.9", "fd00::9"], False), (["10.77.0.1"], True)]
)
def test_the_firewall_line_closes_ports_to_others(peers: list[str], is_open: bool) -> None:
    if shutil.which("nft") is None:
        pytest.skip("needs the command nft (Debian: nftables)")
    serve = """
import socket, time
server = socket.create_server(("", 23456), family=socket.AF_INET6, dualstack_ipv6=True)
time.sleep(60)
"""
    visit = """
import encodings.idna, os, socket
if {uid}:
    os.setgroups([])
    os.setresgid({uid}, {uid}, {uid})
    os.setresuid({uid}, {uid}, {uid})
socket.create_connection(("{address}", 23456), timeout=0.5)
"""
    nobody = 65534
    with two_hosts() as (here, there), ExitStack() as stack:

        def reaches(name: str, address: str, uid: int = 0) -> bool:
            script = visit.format(address=address, uid=uid)
            line = [*namespaces.inside(name), sys.executable, "-S", "-c", script]
            return subprocess.run(line, stderr=subprocess.DEVNULL, timeout=60).returncode == 0

        inside = namespaces.inside(there)
        server = subprocess.Popen([*inside, sys.executable, "-S", "-c", serve])
        stack.callback(server.wait)
        stack.callback(server.kill)
        wait_until(lambda: reaches(here, "10.77.0.2"), timeout_s=60.0)
        assert reaches(there, "127.0.0.1", nobody)
        closing = firewall_line([23456, 23457], peers, uid=os.geteuid())
        subprocess.run([*inside, "sh", "-c", closing], check=True, timeout=60)
        assert reaches(here, "10.77.0.2") == is_open
        # Within the host: the workers' user, by any of its addresses, and no other.
        for address in ("127.0.0.1", "10.77.0.2", "::1"):
            assert reaches(there, address), address
            assert not reaches(there, address, nobody), address


@pytest.mark.long
def test_hosts_of_their_own(tmp_path: Path) -> None:
    """Two network namespaces, an sshd in the second; tfddlrun runs in the first."""
    with two_hosts() as (here, there), ExitStack() as stack:
        inside = namespaces.inside(there)
        ssh = stack.enter_context(sshd(tmp_path / "ssh", address="10.77.0.2", inside=inside))
        line = [*namespaces.inside(here), *LAUNCHER, "--ssh-command", ssh]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*line, *words],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )

        addresses = "10.77.0.1:1,10.77.0.2:2"
        done = run("-H", addresses, *worker("print(task['cluster']['worker'][0])"))
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("] 10.77.0.1:") == 3
        done = run("-H", addresses, "--network-interface", "veth0", *worker("print('x')"))
        assert done.returncode == 0, done.stderr
        done = run("-H", "localhost:1,10.77.0.2:1", "true")
        assert done.returncode == 127
        assert "localhost is 127.0.0.1 on 10.77.0.2, where it reaches only" in done.stderr

        done = run("--check", "-H", addresses)
        assert done.returncode == 0, done.stdout
        assert "ok       10.77.0.2 -> 10.77.0.1: the worker's port can be reached" in done.stdout
        with subprocess.Popen(
            [*line, "-H", addresses, *worker(WAIT)],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            left = pids(tmp_path, *READY)
            namespaces.disconnect(there)
            wait_until(lambda: not in_sessions(left), timeout_s=60.0)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 255
        assert "on 10.77.0.2 failed: lost with its host after" in err
