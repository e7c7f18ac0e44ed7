"""The launcher: plans, ports, options and flags; a job that ends well."""

import argparse
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import tfddl
from tests.launching import TIMEOUT_S, launch, pids, worker
from tfddl._src.cluster import Cluster
from tfddl._src.cluster.environments import tf_config
from tfddl._src.cluster.ports import free_ports, is_free
from tfddl._src.launcher import JobOptions, plan_processes
from tfddl._src.launcher.fleet import FleetOptions
from tfddl._src.launcher.main import make_parser
from tfddl._src.launcher.plan import local_allocation
from tfddl._src.launcher.restart_policy import RestartOptions
from tfddl.errors import LaunchError


def test_plans() -> None:
    command = ("python", "train.py", "--lr=0.1", "--", "-np", "7", "a b", "")
    environment = {"HOME": "/h", "TF_CONFIG": "old", "TF_ENABLE_ONEDNN_OPTS": "0"}
    allocations = [local_allocation((500, 600))]
    plans = plan_processes(
        command, allocations=allocations, environment=MappingProxyType(environment)
    )
    assert [plan.rank for plan in plans] == [0, 1]
    for plan in plans:
        assert plan.argv == command
        cluster = tf_config.parse(plan.environment["TF_CONFIG"])
        assert cluster == Cluster(("127.0.0.1:500", "127.0.0.1:600"), plan.rank)
        assert set(plan.environment) - set(environment) == {
            "PYTHONUNBUFFERED",
            "TF_CPP_MIN_LOG_LEVEL",
        }
        assert plan.environment["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert environment["TF_CONFIG"] == "old"


def test_plans_keep_what_the_user_has_set() -> None:
    environment = {"PYTHONUNBUFFERED": "", "TF_CPP_MIN_LOG_LEVEL": "0"}
    (plan,) = plan_processes(
        ("true",), allocations=[local_allocation((500,))], environment=environment
    )
    assert {name: plan.environment[name] for name in environment} == environment


def test_ports_are_free_and_differ() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if high - low < 50000:
        assert not any(low <= port <= high for port in ports)
    assert all(is_free(port) for port in ports)


@pytest.mark.parametrize(
    ("family", "host"),
    [
        (socket.AF_INET, "127.0.0.1"),
        (socket.AF_INET, ""),
        pytest.param(
            socket.AF_INET6,
            "::1",
            marks=pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6"),
        ),
    ],
)
def test_a_port_taken_on_one_interface_is_not_free(family: socket.AddressFamily, host: str) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as holder:
        holder.bind((host, 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert not is_free(port)
    assert is_free(port)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 0}, "the number of workers (-np) is 0; it must be 1..1024"),
        ({"num_workers": 1025}, "the number of workers (-np) is 1025; it must be 1..1024"),
        ({"grace_s": -1.0}, "--grace-period is -1.0; it must be 0 or more seconds"),
        ({"grace_s": float("nan")}, "--grace-period is nan"),
        ({"stall_timeout_s": -1.0}, "--stall-timeout is -1.0; it must be 0 (never) or more sec"),
        (
            {"restarts": RestartOptions(min_workers=3)},
            "--min-np is 3; it must be at most the 2 w",
        ),
        ({"fleet": FleetOptions(hosts=())}, "there is no host. HINT: -H hostA:2,hostB:2"),
        ({"command": ()}, "there is no command to run. HINT: tfddlrun -np 2 python train.py"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    whole: dict[str, Any] = {"num_workers": 2, "command": ("true",), **options}
    with pytest.raises(LaunchError, match=re.escape(message)):
        JobOptions(**whole)


def test_flags_are_pinned() -> None:
    actions = [a for a in make_parser("x")._actions if a.help is not argparse.SUPPRESS]
    flags = {flag for action in actions for flag in action.option_strings}
    assert flags == {
        # As Horovod's users know them.
        "--check-build",
        "--blacklist-cooldown-range",
        "--config-file",
        "--elastic-timeout",
        "--fusion-threshold-mb",
        "--host-discovery-script",
        "--max-np",
        "--max-num-proc",
        "--min-num-proc",
        "--no-stall-check",
        "--reset-limit",
        "--slots-per-host",
        "--stall-check",
        "--stall-check-shutdown-time-seconds",
        "--stall-check-warning-time-seconds",
        "--timeline-filename",
        "-cb",
        "-hostfile",
        # Ours, and those that both have.
        "--bind",
        "--check",
        "--dry-run",
        "--grace-period",
        "--help",
        "--hostfile",
        "--hosts",
        "--network-interface",
        "--network-interfaces",
        "--nnodes",
        "--node-rank",
        "--nproc-per-node",
        "--master-addr",
        "--master-port",
        "--num-proc",
        "--output-filename",
        "--preload",
        "--horovod",
        "--launcher",
        "--max-restarts",
        "--min-np",
        "--remote-python",
        "--resize-interval",
        "--saved-status",
        "--ssh-command",
        "--ssh-identity-file",
        "--ssh-port",
        "--stall-timeout",
        "--start-timeout",
        "--trusted-network",
        "--verbose",
        "--version",
        "-H",
        "-h",
        "-i",
        "-np",
        "-p",
        "-v",
        "-x",
    }


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        (
            ("true",),
            2,
            "the number of workers is not given. HINT: -np 2, -np auto, or -H hostA:2,hostB:2",
        ),
        (("-np", "2"), 2, "there is no command to run"),
        (("-np", "0", "true"), 2, "the number of workers (-np) is 0; it must be 1..1024"),
        (("-np", "x", "true"), 2, "'x' is neither a number nor 'auto'"),
        (("-np", "2", "--wrong", "true"), 2, "--wrong"),
        (("-np", "2", "--max-restarts", "-1", "true"), 2, "--max-restarts is -1; it must be 0 or"),
        (("-np", "2", "--min-np", "0", "true"), 2, "--min-np is 0; it must be at least 1"),
        (("-np", "2", "--start-timeout", "0", "true"), 2, "--start-timeout is 0.0; it must be abo"),
        (("-np", "2", "./no such"), 127, "tfddlrun: can't start './no such': No such file or dir"),
        (("-np", "2", "/"), 127, "can't start '/': Permission denied. HINT: it must be a program"),
        (
            ("-np", "2", "--output-filename", "/dev/null/x", "true"),
            127,
            "can't write logs to /dev/null/x/rank.0: Not a directory. HINT: --output-filename",
        ),
    ],
)
def test_mistakes_are_said(
    line: tuple[str, ...], status: int, message: str, tmp_path: Path
) -> None:
    done = launch(*line, cwd=tmp_path)
    assert done.returncode == status
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_help_and_version(tmp_path: Path) -> None:
    done = launch("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "tfddlrun -np 2 python train.py --lr=0.1" in done.stdout
    done = launch("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"tfddlrun {tfddl.__version__}\n")


def test_it_loads_nothing_that_takes_long() -> None:
    """No TensorFlow, no NumPy: its own modules and the standard library."""
    script = """
import sys
before = set(sys.modules)
import tfddl._src.launcher.main
print(*{name.partition(".")[0] for name in sys.modules.keys() - before})
"""
    line = [sys.executable, "-c", script]
    done = subprocess.run(line, check=True, timeout=TIMEOUT_S, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "tfddl" in loaded
    assert loaded - {"tfddl"} <= sys.stdlib_module_names


def test_a_job_that_ends_well(tmp_path: Path) -> None:
    script = """
print("hello", sys.argv[1:])
print("warn", file=sys.stderr)
assert sys.stdin.read() == ""
assert os.getsid(0) == os.getpid()
say(f"rank.{rank}")
"""
    options = ("-np", "3", "--verbose", "--output_filename", "my logs", "--")
    done = launch(*options, *worker(script), "--", "--l_r=0.1", "-np", "a b", cwd=tmp_path)
    assert done.returncode == 0
    assert len(pids(tmp_path, "rank.0", "rank.1", "rank.2")) == 3
    arguments = "['--', '--l_r=0.1', '-np', 'a b']"
    assert sorted(done.stdout.splitlines()) == [f"[{rank}] hello {arguments}" for rank in range(3)]
    first, *rest = done.stderr.splitlines()
    assert re.fullmatch(r"tfddlrun: 3 workers on ports \d+, \d+, \d+", first)
    assert sorted(rest) == [f"[{rank}] warn" for rank in range(3)]
    for rank in range(3):
        folder = tmp_path / "my logs" / f"rank.{rank}"
        assert (folder / "stdout").read_text() == f"hello {arguments}\n"
        assert (folder / "stderr").read_text() == "warn\n"
        assert folder.stat().st_mode & 0o077 == 0
