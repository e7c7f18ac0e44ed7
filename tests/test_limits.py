"""What the system grants: open files, raised where they are too few, or an error that says so."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.group import ROOT
from tfddl._src.cluster import Cluster
from tfddl._src.cluster.environments import tf_config
from tfddl._src.launcher.plan import local_allocation, plan_processes
from tfddl._src.launcher.worker_process import WorkerProcess
from tfddl._src.rendezvous.endpoint import MAX_PENDING
from tfddl.errors import LaunchError

ASK = """
import os, resource, sys
from tfddl.errors import LaunchError, StartError
from tfddl._src.rlimits import require_descriptors

soft, hard, count = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    require_descriptors(count, "connections to 9 other workers")
except StartError as error:
    print(error)
else:
    for _ in range(count):
        os.open(os.devnull, os.O_RDONLY)
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "count", "soft_then"),
    [
        (100, 400, 20, 100),  # Enough as it is.
        (100, 400, 80, 400),
        (100, 400, 300, 400),
    ],
)
def test_the_soft_limit_is_raised_to_the_hard_limit(
    soft: int, hard: int, count: int, soft_then: int
) -> None:
    assert _ask(soft, hard, count) == f"{soft_then} {hard}\n"


def test_the_soft_limit_is_raised_to_2_20_at_most() -> None:
    """Of a hard limit of a thousand million nobody needs all, and some programs count up to it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft_then = int(_ask(100, hard, 200).split()[0])
    assert 300 <= soft_then <= 2**20


def test_a_hard_limit_that_is_too_low() -> None:
    said, limits = _ask(100, 400, 500).splitlines()
    assert limits == "400 400"  # What could be had isn't given back.
    found = re.fullmatch(
        r"too few open files are allowed: connections to 9 other workers need 500, besides (\d+) "
        r"that "
        r"are open and 32 to spare, but this process may have 400 \(the hard limit is 400\)\. "
        r"HINT: ulimit -n (\d+) before the start; where that is refused, the system's limit must "
        r"rise first: nofile in /etc/security/limits\.conf, LimitNOFILE= of a systemd service, "
        r"--ulimit nofile= of a container",
        said,
    )
    assert found is not None, said
    assert int(found[2]) == 500 + 32 + int(found[1])
    # And so many are indeed enough.
    assert _ask(100, int(found[2]), 500) == f"{found[2]} {found[2]}\n"


def test_without_dev_fd(monkeypatch: pytest.MonkeyPatch) -> None:
    from tfddl._src import rlimits

    monkeypatch.setattr(rlimits, "_OPEN", "/no/such/folder")
    with pytest.raises(LaunchError, match=r"besides 64 that are open"):
        rlimits.require_descriptors(2**40, "much", kind=LaunchError)


def test_a_refused_limit_is_set_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: the hard limit says that there is none, but not all numbers are taken."""
    from tfddl._src import rlimits

    limit = [100, resource.RLIM_INFINITY]

    def setrlimit(_: int, wanted: tuple[int, int]) -> None:
        if wanted[0] > 10240:
            raise ValueError("current limit exceeds maximum limit")
        limit[:] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limit))
    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    monkeypatch.setattr(rlimits, "_count_open", lambda: 8)
    rlimits.require_descriptors(1000, "much")
    assert limit == [1040, resource.RLIM_INFINITY]
    with pytest.raises(LaunchError, match=r"may have 1040 \(the hard limit is \d{19}\)"):
        rlimits.require_descriptors(11000, "much", kind=LaunchError)


@pytest.mark.parametrize(
    ("sizes", "rank", "expected"),
    # Two for each worker, three in rank 0; two more for each of the host, up to 63 of them.
    [((2,), 0, 6 + 4), ((2,), 1, 4 + 4), ((3, 1), 1, 8 + 6), ((63,), 5, 252), ((64,), 5, 128)],
)
def test_what_a_worker_will_need(
    sizes: tuple[int, ...], rank: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tfddl._src.runtime import startup_checks

    asked: list[int] = []
    monkeypatch.setattr(startup_checks, "require_descriptors", lambda n, what: asked.append(n))
    hosts = [f"host{i}" for i, size in enumerate(sizes) for _ in range(size)]
    workers = tuple(f"{host}:{port}" for port, host in enumerate(hosts, 10000))
    startup_checks._require_descriptors(Cluster(workers, rank))
    assert asked == [expected + MAX_PENDING]


def _ask(*numbers: int) -> str:
    return subprocess.run(
        [sys.executable, "-c", ASK, *map(str, numbers)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout


def _launch(limits: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'{limits}; exec "$@"', "bash", sys.executable, "-m", "tfddl.launcher"]
        + ["--trusted-network", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_launcher_says_which_limit_is_too_low(tmp_path: Path) -> None:
    done = _launch("ulimit -n 64", "-np", "20", "true")
    assert (done.returncode, done.stdout) == (127, "")
    assert re.fullmatch(
        r"tfddlrun: too few open files are allowed: 20 workers need 60, besides \d+ that are open "
        r"and 32 to spare, but this process may have 64 \(the hard limit is 64\)\. HINT: ulimit "
        r"-n \d+ before the start; .*\n",
        done.stderr,
    )
    done = _launch("ulimit -n 64", "-np", "10", f"--output-filename={tmp_path}", "true")
    assert "10 workers need 50, besides" in done.stderr
    hosts = ",".join(f"h{i}:1" for i in range(20))
    done = _launch("ulimit -n 64", "-H", hosts, "true")
    assert "20 workers and connections to 20 hosts need 60, besides" in done.stderr
    done = _launch("ulimit -n 64", "-H", hosts, "--check")
    assert "allowed: connections to 20 hosts need 60, besides" in done.stderr


def test_the_launcher_raises_a_soft_limit(tmp_path: Path) -> None:
    limits = "ulimit -Sn 64; ulimit -Hn 300"
    line = ("sh", "-c", "ulimit -n")
    done = _launch(limits, "-np", "40", f"--output-filename={tmp_path}", *line)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 40
    assert {text.partition(" ")[2] for text in done.stdout.splitlines()} == {"300"}


def test_variables_that_are_too_long_are_named() -> None:
    [plan] = plan_processes(
        ["true"],
        allocations=[local_allocation([12345])],
        environment={**os.environ, "LONG": "x" * 2**17},
    )
    with pytest.raises(LaunchError) as caught:
        WorkerProcess(plan)
    assert str(caught.value) == (
        "can't start 'true': Argument list too long. HINT: its arguments and variables are too "
        "long. The longest variable, LONG, has 131072 bytes; the system takes 131071 in one, name "
        "included. TF_CONFIG gets shorter by shorter names of hosts"
    )


def test_a_cluster_of_thousands_fits_into_a_variable() -> None:
    addresses = tuple(f"255.255.{n // 256}.{n % 256}:65535" for n in range(4000))
    assert len(f"TF_CONFIG={tf_config.render(Cluster(addresses, 3999))}") < 2**17
