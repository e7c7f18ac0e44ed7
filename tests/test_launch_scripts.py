"""The scripts in `launch/`, run with this Python (TFDDL_PYTHON), so that they install nothing."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.hosts import HERE, stand_in, two_hosts
from tests.launching import launched_on_terminal, read_terminal, screen
from tests.processes import wait_until
from tfddl._src.cluster import Cluster
from tfddl._src.cluster.environments import tf_config
from tfddl._src.startup_logs import has_gpu

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / "launch"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), ROOT / ".ci/run"]
HOSTS = ("--hosts", "hostA:12345,hostB:12345")


def run(script: str, *arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LAUNCH / script, *arguments],
        cwd=cwd,
        env={**os.environ, "TFDDL_PYTHON": sys.executable, **more},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_is_bash_and_says_on_top_how_it_is_used(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True, timeout=60)
    assert script.read_text().splitlines()[1].startswith("# ")
    assert os.access(script, os.X_OK) == (script.name != "setup.sh")


@pytest.mark.parametrize("script", ["local.sh", "ssh.sh", "worker.sh", "test.sh"])
def test_help(script: str, tmp_path: Path) -> None:
    done = run(script, "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"./launch/{script}" in done.stdout
    assert "set -euo" not in done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("local.sh", ("3",), "unknown argument '3'; flags of the training command come after --"),
        ("local.sh", ("--workers",), "--workers is ''; it must be 1 or more"),
        ("local.sh", ("--workers", "0"), "--workers is '0'; it must be 1 or more"),
        ("local.sh", ("--workers=two",), "--workers is 'two'; it must be 1 or more"),
        ("test.sh", ("-k", "x"), "unknown argument '-k'; arguments for pytest come after --"),
        ("ssh.sh", ("--", "true"), "--hosts is missing; expected HOST:N,… of every host"),
        ("ssh.sh", ("--hosts=a",), "there is no command to run; it comes after --"),
        ("ssh.sh", ("--hosts=-oX", "--", "true"), "ssh.sh: '-oX' is no host name; letters, digits"),
        ("worker.sh", ("train.py",), "unknown argument 'train.py'; the command comes after --"),
        ("worker.sh", ("--index", "0", "--", "true"), "--hosts is missing; expected HOST:PORT,…"),
        ("worker.sh", (*HOSTS, "--", "true"), "--index is ''; it must be 0 or more"),
        ("worker.sh", (*HOSTS, "--index", "x", "--", "true"), "--index is 'x'; it must be 0 or"),
        ("worker.sh", (*HOSTS, "--index"), "--index is ''; it must be 0 or more"),
        ("worker.sh", (*HOSTS, "--index", "1"), "there is no command to run; it comes after --"),
        (
            "worker.sh",
            (*HOSTS, "--index", "2", "--", "true"),
            "--hosts hostA:12345,hostB:12345 --index 2: rank is 2 among 2 workers; it must be 0..1",
        ),
        (
            "worker.sh",
            ("--hosts", "hostA,hostB:1", "--index", "0", "--", "true"),
            "the address of rank 0 is 'hostA', without a port",
        ),
    ],
)
def test_mistakes_are_said(
    script: str, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    done = run(script, *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_worker_sets_tf_config_and_runs_the_command_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    script = (
        "import os, sys; print(os.environ['TF_CONFIG']); print(sys.argv[1:]); print(os.getcwd())"
    )
    arguments = ("--lr=0.1", "a b", "--", "*", "")
    line = (*HOSTS, "--index", "1", "--", "python", "-c", script, *arguments)
    done = run("worker.sh", *line, cwd=folder)
    assert done.returncode == 0, done.stderr
    config, found, where = done.stdout.splitlines()
    assert tf_config.parse(config) == Cluster(("hostA:12345", "hostB:12345"), 1)
    assert found == str(list(arguments))
    assert where == str(folder)


def test_worker_ends_with_the_status_of_the_command(tmp_path: Path) -> None:
    line = ("--hosts=a:1", "--index=0", "--", "sh", "-c", "exit 7")
    assert run("worker.sh", *line, cwd=tmp_path).returncode == 7


# What a user sees of a training on a terminal: ours and Keras' lines, and no other.
SHOWN = (
    r"tfddl: .+",
    r"Epoch \d+/2",
    r"2/2 ━+ \d+m?s \d+m?s/step - dice: \S+ - loss: \S+ - examples/s: \S+ - val_dice: \S+ - "
    r"val_loss: \S+ *",
)


@pytest.mark.long
@pytest.mark.skipif(has_gpu(), reason="what TensorFlow logs of GPUs is shown")
def test_local_trains_on_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDDL_PYTHON", sys.executable)
    data = ("--num_examples", "16", "--image_size", "16", "--validation_split", "0.25")
    model = ("--filters", "2,4", "--epochs", "2", "--output_dir", "my runs")
    line = ("--workers", "2", "--", *data, *model)
    script = [str(LAUNCH / "local.sh")]
    with launched_on_terminal(*line, command=script, columns=200, cwd=tmp_path) as (
        process,
        terminal,
    ):
        shown = screen(read_terminal(terminal, timeout_s=200))
        assert process.wait(timeout=60) == 0, "\n".join(shown)
    assert list(tmp_path.glob("my runs/**/*.keras"))
    assert list(tmp_path.glob("my runs/**/*.png"))
    assert shown.pop() == ""
    kinds = [
        [pattern for pattern in SHOWN if re.fullmatch(rf"\[0\] {pattern}", line)] for line in shown
    ]
    assert [line for line, found in zip(shown, kinds, strict=True) if not found] == []
    # One progress bar, one line for an epoch, and one result.
    epochs = [SHOWN.index(kind) for (kind,) in kinds if kind != SHOWN[0]]
    assert epochs == [1, 2, 1, 2]
    assert "\n".join(shown).count("validation Dice") == 1


def test_ssh_runs_the_command_on_all_hosts(tmp_path: Path) -> None:
    ssh = stand_in(tmp_path / "ssh")
    hosts = f"{HERE[0]}:1,{HERE[1]}:1"
    line = ("--hosts", hosts, "--ssh-command", ssh, "-x", "A=b c", "--trusted-network", "--")
    done = run("ssh.sh", *line, "sh", "-c", 'echo "$A $1 $FROM_THERE"', "x", "a b", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == ["[0] b c a b yes", "[1] b c a b yes"]


def test_ssh_sets_up_every_host(project: "Project") -> None:
    """The same folder on every host is set up through its own launch/setup.sh."""
    ssh = stand_in(project.folder.parent / "ssh", before=f"env PATH={project.path}:/usr/bin:/bin")
    hosts = f"{HERE[0]}:1,{HERE[1]}:1"
    done = subprocess.run(
        [project.folder / "launch/ssh.sh", "--hosts", hosts, "--ssh-command", ssh, "--", "true"],
        env={**project.environment, "PYTHONPATH": str(ROOT), "TFDDL_TRUSTED_NETWORK": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    asked = (project.folder.parent / "ssh/asked").read_text().split()
    assert asked == [*HERE, *HERE]  # to set it up, then to run
    assert project.done() == ["venv", project.installs, "installed"]  # one folder, set up once


SBATCH = LAUNCH / "slurm.sbatch"
FAKE_SRUN = """#!/bin/sh
printf '%s\\n' "$TFDDL_CORES" "$TFDDL_PORT" "$(command -v python)" "$PWD" "$@" >srun
turns=0
while [ -e sleeps ] && [ ! -e asked ] && [ $turns -lt 400 ]; do
  sleep 0.1; turns=$((turns + 1))
done
exit "$(cat status)"
"""
FAKE_SQUEUE = """#!/bin/sh
[ "$*" = "--noheader --format=%T --jobs=1234567" ] && cat state
"""
FAKE_SLURM = """#!/bin/sh
echo "${0##*/} $*" >>asked
"""


class BatchJob:
    """launch/slurm.sbatch as sbatch starts it, with commands in the place of Slurm's."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "my project"
        self.folder.mkdir()
        commands = folder / "bin"
        commands.mkdir()
        for name, text in {
            "srun": FAKE_SRUN,
            "squeue": FAKE_SQUEUE,
            "scontrol": FAKE_SLURM,
            "scancel": FAKE_SLURM,
        }.items():
            (commands / name).write_text(text)
            (commands / name).chmod(0o755)
        self.script = folder / "slurm_script"  # a copy, as Slurm makes one
        shutil.copy(SBATCH, self.script)
        self.environment = {
            "PATH": f"{commands}:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_CPUS_PER_TASK": "4",
            "SLURM_JOB_ID": "1234567",
        }
        (self.folder / "status").write_text("0")
        (self.folder / "state").write_text("RUNNING\n")

    def start(self, *command: str, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", self.script, *command],
            env={**self.environment, **more},
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *command: str, **more: str) -> tuple[int, str]:
        """Its status, and what it said."""
        with self.start(*command, **more) as job:
            _, err = job.communicate(timeout=60)
        return job.returncode, err


@pytest.fixture
def batch_job(tmp_path: Path) -> BatchJob:
    job = BatchJob(tmp_path)
    (job.folder / "venv").symlink_to(sys.prefix)
    return job


def test_slurm_gives_srun_the_command_the_cores_and_ports(batch_job: BatchJob) -> None:
    assert SBATCH.read_text().splitlines()[1].startswith("# ")
    assert batch_job.run("python", "a b") == (0, "")
    cores, port, python, folder, *arguments = (batch_job.folder / "srun").read_text().splitlines()
    assert (cores, port) == ("4", f"{20000 + 1234567 % 180 * 64}")
    assert python == f"{batch_job.folder}/venv/bin/python"
    assert folder == str(batch_job.folder)
    assert "--cpus-per-task=4" in arguments
    assert arguments[-2:] == ["python", "a b"]
    assert not (batch_job.folder / "asked").exists()


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        ((), {}, "slurm.sbatch: there is no command to run. HINT: sbatch slurm.sbatch python t"),
        (("x",), {"TFDDL_VENV": "/no"}, "TFDDL_VENV is '/no'; there is no bin/python in it"),
        (("x",), {"PYTHONPATH": "", "TFDDL_VENV": "bare"}, "bare/bin/python has no tfddl. HINT"),
        (("x",), {"SLURM_SUBMIT_DIR": ""}, "slurm.sbatch: sbatch starts this script"),
    ],
)
def test_slurm_mistakes_are_said(
    command: tuple[str, ...], changes: dict[str, str], message: str, batch_job: BatchJob
) -> None:
    bare = batch_job.folder / "bare/bin/python"
    bare.parent.mkdir(parents=True)
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    bare.chmod(0o755)
    status, err = batch_job.run(*command, **changes)
    assert status in (1, 2)
    assert message in err
    assert not (batch_job.folder / "srun").exists()


@pytest.mark.parametrize(
    ("status", "state", "asked"),
    [
        (75, "RUNNING", "scontrol requeue 1234567\n"),
        (75, "COMPLETING", None),  # cancelled by the user
        (3, "RUNNING", None),
    ],
)
def test_slurm_queues_a_job_again_that_has_saved(
    status: int, state: str, asked: str | None, batch_job: BatchJob
) -> None:
    (batch_job.folder / "status").write_text(str(status))
    (batch_job.folder / "state").write_text(f"{state}\n")
    assert batch_job.run("python")[0] == status
    path = batch_job.folder / "asked"
    assert (path.read_text() if path.exists() else None) == asked


def test_slurm_passes_sigterm_on_to_the_tasks_and_waits(batch_job: BatchJob) -> None:
    (batch_job.folder / "status").write_text("75")
    (batch_job.folder / "sleeps").touch()
    with batch_job.start("python") as job:
        wait_until(lambda: (batch_job.folder / "srun").exists())
        job.send_signal(signal.SIGTERM)
        job.communicate(timeout=60)
    assert job.returncode == 75
    assert (batch_job.folder / "asked").read_text().splitlines() == [
        "scancel --quiet --signal=TERM 1234567",
        "scontrol requeue 1234567",
    ]


def test_ports_of_an_array_do_not_overlap() -> None:
    """The formula of the script: consecutive job ids, up to 64 workers per node."""
    (formula,) = re.findall(r"TFDDL_PORT:-\$\(\((.*?)\)\)", SBATCH.read_text())
    ports = [eval(formula.replace("SLURM_JOB_ID", str(job))) for job in range(1000, 1180)]
    taken = [port + rank for port in ports for rank in range(64)]
    assert len(set(taken)) == len(taken)
    assert min(taken) > 1023
    assert max(taken) < 32768


def test_images_are_pinned_and_not_root() -> None:
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    stages = {found[-1]: found[1] for found in words if found[0] == "FROM" and "AS" in found}
    assert stages == {"base": "${PYTHON}", "gpu": "base", "cpu": "base", "ssh": "${DEVICE}"}
    last = [index for index, found in enumerate(words) if found[0] == "FROM"][-1]
    assert words[last:] == [["FROM", "${DEVICE}"]]
    (base,) = [found[1] for found in words if found[0] == "ARG" and "PYTHON=" in found[1]]
    assert re.fullmatch(r"PYTHON=python:3\.\d+\.\d+-slim-\w+(@sha256:[0-9a-f]{64})?", base)
    versions = [found[1] for found in words if found[0] == "ARG" and "TENSORFLOW" in found[1]]
    assert len(set(versions)) == 1
    assert re.fullmatch(r"TENSORFLOW=[\d.]+", versions[0])
    # Each stage that is built ends as that user; of a name, runAsNonRoot can't see who it is.
    user = "10001:10001"
    for stage in ("gpu", "cpu", "ssh"):
        start = next(i for i, found in enumerate(words) if found[-1] == stage and "AS" in found)
        rest = [i for i, found in enumerate(words) if found[0] == "FROM" and i > start]
        users = [found[1] for found in words[start : min(rest)] if found[0] == "USER"]
        assert users[-1] == user, stage
    for copied in (word for found in words if found[0] == "COPY" for word in found[1:-1]):
        assert (ROOT / copied).exists(), copied
    for path in sorted((LAUNCH / "kubernetes").glob("*.yaml")):
        for context in re.findall(r"runAsUser: (\d+).*\n +runAsGroup: (\d+)", path.read_text()):
            assert ":".join(context) == user


FAKE_PYTHON = """#!/usr/bin/env bash
# Stands for the Python that is found, and for the one of an environment, without a network.
log="{folder}/log"
case "$*" in
  "-m venv "*)
    for venv; do :; done
    echo "venv" >>"$log"
    mkdir -p "$venv/bin"
    touch "$venv/pyvenv.cfg"
    cp "$0" "$venv/bin/python"
    ;;
  "-m pip install "*)
    for what; do :; done
    echo "install $what" >>"$log"
    sleep "${{FAKE_SECONDS:-0}}"
    [[ -z "${{FAKE_FAILS:-}}" ]] || {{ echo "pip has no network" >&2; exit 1; }}
    echo "installed" >>"$log"
    ;;
  "-c "*version_info*) exit "${{FAKE_TOO_OLD:-0}}" ;;
  "-c "*base_prefix*) echo "${{FAKE_VERSION:-3.11}}" ;;
  *) exec "{python}" "$@" ;;
esac
"""


class Project:
    """A copy of the scripts in a folder with a space, set up by a fake Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "my project"
        shutil.copytree(LAUNCH, self.folder / "launch")
        (self.folder / "pyproject.toml").write_text("# one\n")
        self.path = folder / "bin"
        self.path.mkdir()
        fake = self.path / "python3"
        fake.write_text(FAKE_PYTHON.format(folder=folder, python=sys.executable))
        fake.chmod(0o755)
        self._log = folder / "log"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "TFDDL_PYTHON"},
            "PATH": f"{self.path}:{os.environ['PATH']}",
        }
        self.installs = f"install {self.folder}"

    def start(self, extra: str = "", **more: str) -> subprocess.Popen[str]:
        """Begins a set-up that says in the end which python it found."""
        environment = {**self.environment, **more}
        script = f'set -euo pipefail; . launch/setup.sh; set_up "{extra}"; command -v python'
        return subprocess.Popen(
            ["bash", "-c", script],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def set_up(self, extra: str = "", **more: str) -> tuple[int, str, str]:
        with self.start(extra, **more) as process:
            out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def done(self) -> list[str]:
        """What the fake Python did since it was last asked."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.unlink(missing_ok=True)
        return lines


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_sets_up_once(project: Project) -> None:
    python = f"{project.folder}/.venv/bin/python\n"
    status, out, err = project.set_up()
    assert (status, out) == (0, python)
    assert err == f"Setting up {project.folder}/.venv (TensorFlow, ~600 MB, once) …\n"
    assert project.done() == ["venv", project.installs, "installed"]
    assert project.set_up() == (0, python, "")
    assert project.done() == []


def test_sets_up_again_for_what_has_changed(project: Project) -> None:
    project.set_up()
    project.done()
    project.set_up("test")
    assert project.done() == ["venv", f"{project.installs}[test]", "installed"]
    project.set_up()  # what tests need includes what training needs
    assert project.done() == []
    (project.folder / "pyproject.toml").write_text("# two\n")
    project.set_up("test")
    assert project.done()[1:] == [f"{project.installs}[test]", "installed"]
    project.set_up(FAKE_VERSION="3.12")
    assert project.done()[1:] == [project.installs, "installed"]


def test_takes_up_an_interrupted_installation(project: Project) -> None:
    with project.start(FAKE_SECONDS="60") as process:
        wait_until(lambda: (project.folder.parent / "log").exists())
        wait_until(lambda: "install" in (project.folder.parent / "log").read_text())
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
    assert project.done()[-1] == project.installs
    assert project.set_up()[0] == 0
    assert project.done()[-1] == "installed"


def test_shows_why_an_installation_failed(project: Project) -> None:
    status, out, err = project.set_up(FAKE_FAILS="1")
    assert (status, out) == (1, "")
    assert err.endswith("pip has no network\n")
    project.done()
    assert project.set_up()[0] == 0
    assert project.done()[-1] == "installed"


def test_of_two_starts_at_once_one_installs(project: Project) -> None:
    with project.start(FAKE_SECONDS="0.5") as first, project.start(FAKE_SECONDS="0.5") as second:
        for process in (first, second):
            process.communicate(timeout=60)
            assert process.returncode == 0
    assert project.done() == ["venv", project.installs, "installed"]


def test_refuses_a_folder_that_is_something_else(project: Project, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    status, _, err = project.set_up(TFDDL_VENV=str(tmp_path / "precious"))
    assert status == 2
    assert f"{tmp_path}/precious is no Python environment, and not empty; set TFDDL_VENV" in err
    assert (tmp_path / "precious/file").exists()


def test_says_which_python_it_needs(project: Project) -> None:
    for name in ("python3.11", "python3.12", "python3.13"):
        os.symlink("python3", project.folder.parent / "bin" / name)
    status, _, err = project.set_up(FAKE_TOO_OLD="1")
    assert status == 2
    assert "needs Python 3.11 or newer; python3 is Python 3." in err
    status, _, err = project.set_up(TFDDL_PYTHON="/no/such/python")
    assert status == 2
    assert "TFDDL_PYTHON is '/no/such/python'; no such program" in err


SHARED_SUM = """
import os, sys
from pathlib import Path
import numpy as np
import tfddl
tfddl.init()
total = tfddl.allreduce(np.float32(tfddl.rank() + 1), op="sum")
network = os.readlink("/proc/self/ns/net")
places = (tfddl.rank(), tfddl.size(), tfddl.local_rank(), tfddl.cross_rank(), tfddl.cross_size())
Path(sys.argv[1], f"rank.{tfddl.rank()}").write_text(f"{places} {float(total)}\\n{network}\\n")
tfddl.barrier()
"""


@pytest.mark.long
def test_worker_between_two_hosts(tmp_path: Path) -> None:
    hosts = "--hosts=10.77.0.1:12345,10.77.0.2:12345"
    with two_hosts() as names, ExitStack() as stack:
        workers = []
        for index, name in enumerate(names):
            script = str(LAUNCH / "worker.sh")
            line = ["ip", "netns", "exec", name, script, hosts, f"--index={index}", "--"]
            worker = subprocess.Popen(
                [*line, "python", "-c", SHARED_SUM, str(tmp_path)],
                env={**os.environ, "TFDDL_PYTHON": sys.executable},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            stack.callback(worker.communicate)
            stack.callback(worker.kill)
            workers.append(worker)
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], "\n".join(outputs)
    evidence = [(tmp_path / f"rank.{rank}").read_text().splitlines() for rank in range(2)]
    assert evidence[0][0] == "(0, 2, 0, 0, 2) 3.0"
    assert evidence[1][0] == "(1, 2, 0, 1, 2) 3.0"
    assert evidence[0][1] != evidence[1][1]  # really two hosts, as the network sees it


@pytest.mark.parametrize(
    ("environment", "can_install", "status", "message"),
    [
        ({"CI": "true"}, True, 0, "tested"),
        ({"CI": "true"}, False, 1, "can't install openssh-client iproute2 nftables openssl "),
        ({}, False, 0, "tested"),  # on a developer's machine
    ],
)
def test_ci_fails_where_tests_would_be_skipped(
    environment: dict[str, str], can_install: bool, status: int, message: str, tmp_path: Path
) -> None:
    commands = tmp_path / "commands"
    for folder in (commands, tmp_path / ".ci", tmp_path / "launch"):
        folder.mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    for name in ("bash", "dirname", "timeout"):
        (commands / name).symlink_to(shutil.which(name) or name)
    installs = f'[ "$1" = update ] || echo "E: no network" >&2; exit {0 if can_install else 100}'
    texts = {"id": "echo 0", "apt-get": installs, "sshd": ":", "../launch/test.sh": "echo tested"}
    for name, text in texts.items():
        (commands / name).write_text(f"#!/bin/sh\n{text}\n")
        (commands / name).chmod(0o755)
    (commands / "sh").symlink_to("/bin/sh")
    done = subprocess.run(
        [tmp_path / ".ci/run"],
        env={"PATH": str(commands), **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == status
    assert message in done.stdout + done.stderr
    assert ("E: no network" in done.stderr) == ("CI" in environment)


@pytest.mark.parametrize(
    ("squeue", "scontrol", "asked", "message"),
    [
        ("[ $(wc -l <tries) -ge 3 ] && echo RUNNING", "true", 1, "saved; queueing job 7 again"),
        ("exit 1", "true", 0, "Slurm doesn't say whether job 7 still runs"),
        ("echo CANCELLED", "true", 0, "job 7 is CANCELLED, and is not queued again"),
        ("echo RUNNING", "exit 1", 5, "saved, but job 7 can't be queued again (see above). HINT"),
    ],
)
def test_the_batch_script_says_what_slurm_has_done(
    squeue: str, scontrol: str, asked: int, message: str, tmp_path: Path
) -> None:
    """With commands in place of Slurm's, whose step has ended with 75."""
    commands = {
        "srun": "exit 75",
        "squeue": f"echo >>tries; {squeue}",
        "scontrol": f"echo $* >>asked; {scontrol}",
        "sleep": "true",
    }
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "venv").symlink_to(sys.prefix)
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7"}
    done = subprocess.run(
        ["bash", LAUNCH / "slurm.sbatch", "true"],
        env={**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 75
    assert message in done.stderr
    lines = (tmp_path / "asked").read_text().splitlines() if asked else []
    assert lines == ["requeue 7"] * asked
    assert (tmp_path / "asked").exists() == bool(asked)
