"""A private Slurm of two nodes on this machine: slurmctld, two slurmd and munged, and their end.

Each node is a network namespace with an address of its own (`tests.namespaces`). Nothing of it is
outside of its folder and its namespaces: it has its own configuration, key, socket and /etc/hosts,
and can run beside a Slurm that the machine belongs to.

    python -m tests.slurm_cluster              a shell in which sinfo, sbatch, srun and salloc work
    python -m tests.slurm_cluster COMMAND …    runs a command instead, and ends with its status
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.namespaces import ADDRESSES, inside, missing_for_hosts, two_hosts
from tests.processes import is_running

NODES = ("n1", "n2")
CPUS = 4
"""Of each node, as Slurm counts them; the machine may have fewer."""

_PROGRAMS = ("slurmctld", "slurmd", "munged", "srun")
_START_S, _COMMAND_S, _END_S = 60.0, 30.0, 10.0
_CONTROLLER, _PORT = 6817, 6818

_CONF = """\
ClusterName=tfddl
SlurmctldHost={controller}({address})
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is queued again waits until its credential has expired.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
# No cgroups, whose files belong to the machine.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,requeue_delay=0
# Minutes otherwise, until a job ends whose processes ignore SIGTERM.
KillWait=20
JobRequeue=1
MinJobAge=600
{nodes}
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""


def missing_for_slurm() -> str:
    """What this machine lacks to run it; empty if nothing."""
    for program in _PROGRAMS:
        if _find(program) is None:
            return f"needs {program} (Debian: slurmctld, slurmd, slurm-client, munge)"
    return missing_for_hosts()


@dataclass(frozen=True)
class SlurmCluster:
    """A running one.

    Attributes:
        folder: its files.
        environment: variables by which Slurm's commands find it.
        login: the prefix of a command that is to run on the first node.
    """

    folder: Path
    environment: dict[str, str]
    login: tuple[str, ...]

    def run(
        self, *command: str, cwd: Path | None = None, timeout_s: float = _COMMAND_S
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command on the first node to its end."""
        with self.start(*command, cwd=cwd) as process:
            out, err = process.communicate(timeout=timeout_s)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    @contextmanager
    def start(self, *command: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
        """A command on the first node, killed at the end if it still runs."""
        with subprocess.Popen(
            [*self.login, *command],
            cwd=cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def submit(self, *line: str, cwd: Path) -> str:
        """Submits a job by `sbatch`; returns its id."""
        done = self.run("sbatch", "--parsable", *line, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """The state of a job: PENDING, RUNNING, COMPLETED, FAILED and so on."""
        done = self.run("scontrol", "--oneliner", "show", "job", job)
        assert done.returncode == 0, done.stderr
        return done.stdout.partition("JobState=")[2].split()[0]

    def wait(self, job: str, *states: str, timeout_s: float) -> str:
        """Waits until a job is in one of these states; returns it."""
        end_s = time.monotonic() + timeout_s
        while (state := self.state(job)) not in states:
            assert time.monotonic() < end_s, f"job {job} is {state}, not {states}\n{self.logs()}"
            time.sleep(0.2)
        return state

    def logs(self) -> str:
        """The ends of the daemons' logs, for messages."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[SlurmCluster]:
    """Starts a Slurm of the nodes n1 and n2; at the end nothing of it runs.

    Args:
        folder: for its files; a short path, since sockets are in it.
    """
    for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(mode=0o755, parents=True)
    hosts = "".join(f"{a} {n}\n" for a, n in zip(ADDRESSES, NODES, strict=True))
    (folder / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
    (folder / "slurm.conf").write_text(_render(folder))
    # Of the two plugins, this one starts where no cgroup file system is mounted.
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    with ExitStack() as stack:
        names = stack.enter_context(two_hosts())
        stack.callback(_end_all, folder)
        _start_munge(folder)
        logins = [
            _login(name, node, folder / "hosts") for name, node in zip(names, NODES, strict=True)
        ]
        environment = _environment(folder)
        cluster = SlurmCluster(folder, environment, logins[0])
        conf = str(folder / "slurm.conf")
        _spawn([*logins[0], _found("slurmctld"), "-i", "-f", conf], environment, folder)
        for login, node in zip(logins, NODES, strict=True):
            _spawn([*login, _found("slurmd"), "-N", node, "-f", conf], environment, folder)
        _wait_for_nodes(cluster)
        yield cluster
        cluster.run("scancel", "--user=root", "--full")
        _wait_for_jobs(cluster)


def _render(folder: Path) -> str:
    nodes = "\n".join(
        f"NodeName={node} NodeHostname={node} NodeAddr={address} Port={_PORT} CPUs={CPUS} "
        "RealMemory=4000 State=UNKNOWN"
        for node, address in zip(NODES, ADDRESSES, strict=True)
    )
    return _CONF.format(
        controller=NODES[0],
        address=ADDRESSES[0],
        controller_port=_CONTROLLER,
        folder=folder,
        nodes=nodes,
    )


def _login(namespace: str, node: str, hosts: Path) -> tuple[str, ...]:
    """The prefix of a command on a node: `ip netns exec` has made mounts private already."""
    script = f'mount --bind "{hosts}" /etc/hosts && hostname {node} && exec "$@"'
    return (*inside(namespace), "unshare", "--uts", "sh", "-c", script, "sh")


def _environment(folder: Path) -> dict[str, str]:
    """Variables for Slurm's commands; none of a Slurm that pytest itself may be run by."""
    others = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "SRUN_", "SBATCH_", "SALLOC_"))
    }
    return {**others, "SLURM_CONF": str(folder / "slurm.conf")}


def _start_munge(folder: Path) -> None:
    home = folder / "munge"
    key = home / "key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    subprocess.run(
        [
            _found("munged"),
            "--force",  # root, and a folder of the test's user
            f"--socket={home}/socket",
            f"--key-file={key}",
            f"--log-file={folder}/munged.log",
            f"--pid-file={folder}/munged.pid",
            f"--seed-file={home}/seed",
        ],
        check=True,
        timeout=_START_S,
    )


def _spawn(line: Sequence[str], environment: dict[str, str], folder: Path) -> None:
    """Starts a daemon, which goes to the background by itself when it is ready."""
    done = subprocess.run(
        line, env=environment, cwd=folder, stdin=subprocess.DEVNULL, timeout=_START_S, check=False
    )
    if done.returncode:
        logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
        raise RuntimeError(f"{line[-4:]} ended with {done.returncode}\n{logs}")


def _wait_for_nodes(cluster: SlurmCluster) -> None:
    end_s = time.monotonic() + _START_S
    while True:
        done = cluster.run("sinfo", "--noheader", "--Node", "--format=%T")
        if done.stdout.split() == ["idle", "idle"]:
            return
        assert time.monotonic() < end_s, f"{done.stdout}{done.stderr}\n{cluster.logs()}"
        time.sleep(0.2)


def _wait_for_jobs(cluster: SlurmCluster) -> None:
    end_s = time.monotonic() + _START_S
    while (done := cluster.run("squeue", "--noheader")).stdout.strip():
        if time.monotonic() > end_s:
            raise RuntimeError(f"jobs don't end: {done.stdout}\n{cluster.logs()}")
        time.sleep(0.2)


def _end_all(folder: Path) -> None:
    """Ends the daemons, by the ids that they have written, and steps that they have left."""
    pids = [int(path.read_text()) for path in folder.glob("*.pid")]
    # Steps (slurmstepd) end by themselves with their tasks; a killed test may leave some.
    everyone = map(int, filter(str.isdigit, os.listdir("/proc")))
    pids += [pid for pid in everyone if _is_ours(pid, folder)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in filter(is_running, pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        end_s = time.monotonic() + _END_S
        while any(map(is_running, pids)) and time.monotonic() < end_s:
            time.sleep(0.05)
    left = [pid for pid in pids if is_running(pid)]
    if left:
        raise RuntimeError(f"processes {left} of Slurm don't end")


def _is_ours(pid: int, folder: Path) -> bool:
    """Whether a process is one of this Slurm, or of its jobs: its environment says so."""
    try:
        found = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"SLURM_CONF={folder}/slurm.conf\0".encode() in found


def _find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def _found(program: str) -> str:
    return _find(program) or program


def main(command: Sequence[str]) -> int:
    """Runs a command, or a shell, on the first node."""
    if missing := missing_for_slurm():
        sys.stderr.write(f"{missing}\n")
        return 2
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        with slurm_cluster(Path(folder)) as cluster:
            line = [*cluster.login, *(command or [os.environ.get("SHELL", "sh")])]
            return subprocess.run(line, env=cluster.environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
