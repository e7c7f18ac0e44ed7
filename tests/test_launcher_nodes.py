"""One job of several `tfddlrun`, one on each host: flags, variables, and real meetings."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from tests import namespaces
from tests.hosts import two_hosts
from tests.launching import LAUNCHER, TIMEOUT_S, launch, launched, pids, worker
from tests.processes import in_sessions
from tfddl import __version__
from tfddl._src import rendezvous
from tfddl._src.cluster import Cluster, NodeRank, PartialCluster
from tfddl._src.cluster.ports import free_ports, hold_ports
from tfddl._src.heartbeat import Stage, WorkerProgress
from tfddl._src.launcher import JobOptions, node_flags
from tfddl._src.launcher.main import make_parser
from tfddl._src.launcher.multi_node import (
    JoinedNodes,
    NodeFacts,
    NodeOptions,
    join_nodes,
    make_allocations,
)
from tfddl._src.launcher.output import Console
from tfddl._src.launcher.plan import HostAllocation
from tfddl._src.launcher.restart_policy import RestartOptions
from tfddl._src.launcher.signals import Signals
from tfddl._src.launcher.stall_detector import StallDetector
from tfddl.errors import ClusterError, LaunchError, StartError

ROOT = Path(__file__).resolve().parent.parent
ENGINE = NodeRank(1, 4, master="algo-1:2222", workers_per_node=8, job="j", source="SM_HOSTS")
NO_MASTER = NodeRank(2, 3, source="JOB_COMPLETION_INDEX")
SECRET = "5ec2e7" * 8


def read(
    line: str, found: NodeRank | str | None = None, environment: dict[str, str] | None = None
) -> NodeRank | None:
    """What the flags come to where an engine says this; a text is its error."""

    def detect_nodes(environ: Any, *, num_nodes: int | None) -> NodeRank | None:
        if isinstance(found, str):
            raise ClusterError(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(node_flags, "detect_nodes", detect_nodes)
        arguments = make_parser("x").parse_args([*line.split(), "true"])
        return node_flags.read_nodes(arguments, MappingProxyType(environment or {}))


ALL = "--nnodes 3 --node-rank 1 --master-addr"
BY_HAND = "--nnodes, --node-rank"


@pytest.mark.parametrize(
    ("line", "found", "environment", "expected"),
    [
        ("", None, {}, None),
        ("-H a,b", None, {}, None),
        ("-H a,b", NodeRank(0, 1), {}, None),
        (f"{ALL} a", None, {}, NodeRank(1, 3, "a:12345", source=BY_HAND)),
        (f"{ALL} a:7", None, {}, NodeRank(1, 3, "a:7", source=BY_HAND)),
        (f"{ALL} a --master-port 8", None, {}, NodeRank(1, 3, "a:8", source=BY_HAND)),
        (f"{ALL} a:8 --master-port 8", None, {}, NodeRank(1, 3, "a:8", source=BY_HAND)),
        (f"{ALL} a", None, {"TFDDL_PORT": "9"}, NodeRank(1, 3, "a:9", source=BY_HAND)),
        (f"{ALL} ::1", None, {}, NodeRank(1, 3, "[::1]:12345", source=BY_HAND)),
        (f"{ALL} [::1]:7", None, {}, NodeRank(1, 3, "[::1]:7", source=BY_HAND)),
        (f"{ALL} [::1]", None, {}, NodeRank(1, 3, "[::1]:12345", source=BY_HAND)),
        # torchrun's spelling.
        (
            "--nnodes=3 --node_rank=1 --master_addr=a --master_port=7",
            None,
            {},
            NodeRank(1, 3, "a:7", source=BY_HAND),
        ),
        (
            "--nnodes 3 --node-rank 1",
            None,
            {"MASTER_ADDR": "b", "MASTER_PORT": "29500"},
            NodeRank(1, 3, "b:29500", source=BY_HAND),
        ),
        # Flags that say everything win over whatever the engine says.
        (f"{ALL} a", ENGINE, {}, NodeRank(1, 3, "a:12345", source=BY_HAND)),
        (f"{ALL} a", "SM_HOSTS is wrong", {}, NodeRank(1, 3, "a:12345", source=BY_HAND)),
        # The engine alone, or with flags that agree.
        ("", ENGINE, {}, ENGINE),
        ("--nnodes 4", ENGINE, {}, ENGINE),
        ("--node-rank 1", ENGINE, {}, ENGINE),
        (
            "--master-port 7",
            ENGINE,
            {},
            NodeRank(1, 4, "algo-1:7", workers_per_node=8, job="j", source="SM_HOSTS"),
        ),
        (
            "--nnodes 3 --master-addr a",
            NO_MASTER,
            {},
            NodeRank(2, 3, "a:12345", source="JOB_COMPLETION_INDEX"),
        ),
        (
            "",
            NO_MASTER,
            {"MASTER_ADDR": "b"},
            NodeRank(2, 3, "b:12345", source="JOB_COMPLETION_INDEX"),
        ),
        ("", NO_MASTER, {}, NO_MASTER),  # NodeOptions refuses it
        ("", NodeRank(0, 1, "a:7", source="SM_HOSTS"), {}, None),
        # One node is this host alone, whatever the engine says.
        ("--nnodes 1", ENGINE, {}, None),
        ("--nnodes 1 --node-rank 0", "SM_HOSTS is wrong", {}, None),
        ("--nnodes 1 -H a,b", ENGINE, {}, None),
        # A worker of another tfddlrun: TF_CONFIG is that job's.
        ("", "one job of two", {"TFDDL_RESTARTS": "0"}, None),
        ("--nnodes 4", ENGINE, {"TFDDL_RESTARTS": "0"}, ENGINE),
    ],
)
def test_which_node_this_is(
    line: str,
    found: NodeRank | str | None,
    environment: dict[str, str],
    expected: NodeRank | None,
) -> None:
    assert read(line, found, environment) == expected


@pytest.mark.parametrize(
    ("line", "found", "environment", "message"),
    [
        ("--nnodes 0", None, {}, "--nnodes is '0'; expected a number in 1..1024"),
        ("--nnodes 2:4", None, {}, "--nnodes is '2:4'; expected a number in 1..1024"),
        ("--nnodes 2 --node-rank -1", None, {}, "--node-rank is '-1'; expected a number in 0.."),
        ("--nnodes 2 --node-rank 2", None, {}, "the node rank is 2 among 2 nodes"),
        ("--nnodes 1 --node-rank 1", None, {}, "--node-rank is 1 of 1 node; it must be 0"),
        ("--nnodes 2", None, {}, "nothing says which of the nodes this is. HINT: --node-rank 0"),
        ("--node-rank 1", None, {}, "--node-rank needs --nnodes, the number of hosts"),
        ("--master-addr a", None, {}, "--master-addr needs --nnodes, the number of hosts"),
        (f"{ALL} a:8 --master-port 7", None, {}, "--master-addr has the port 8, and --master-po"),
        (f"{ALL} a:0", None, {}, "the port of --master-addr is '0'; expected a number in 1..65535"),
        (f"{ALL} a:x", None, {}, "the port of --master-addr is 'x'; expected a number in 1..65535"),
        (f"{ALL} a_b/c", None, {}, "--master-addr is 'a_b/c': the address of node 0 is"),
        (f"{ALL} a", None, {"TFDDL_PORT": "x"}, "TFDDL_PORT is 'x'; expected a number in"),
        (
            "--nnodes 2 --node-rank 1 --master-port 65536",
            None,
            {},
            "--master-port is '65536'; expected a number in 1..65535",
        ),
        ("--node-rank 0", ENGINE, {}, "--node-rank is 0, but by SM_HOSTS it is 1. HINT: leave"),
        (
            "-H a,b",
            ENGINE,
            {},
            "-H (or --hostfile) names the hosts, but this is node 1 of 4 (SM_HOSTS), each of which "
            "may have a tfddlrun of its own. HINT: leave out -H, and these become one job; or "
            "--nnodes 1, where only this one runs",
        ),
        ("-H a,b --nnodes 2", None, {}, "-H (or --hostfile) names the hosts, and --nnodes says"),
        (
            "",
            "SLURM_NTASKS is 8. HINT: --ntasks-per-node=1",
            {},
            "SLURM_NTASKS is 8. HINT: --ntasks-per-node=1; or say it by --nnodes, --node-rank and "
            "--master-addr; --nnodes 1 is this host alone",
        ),
        (
            "-H a,b",
            "SLURM_NTASKS is 8",
            {},
            "SLURM_NTASKS is 8. HINT: --nnodes 1 says that this tfddlrun, and no other, starts",
        ),
    ],
)
def test_contradictions_are_refused(
    line: str, found: NodeRank | str | None, environment: dict[str, str], message: str
) -> None:
    with pytest.raises(LaunchError, match=re.escape(message)):
        read(line, found, environment)


def tf_config(*workers: str, index: int) -> dict[str, str]:
    cluster, task = {"worker": workers}, {"type": "worker", "index": index}
    return {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task, "environment": "cloud"})}


SAGEMAKER = {"SM_HOSTS": '["algo-1", "algo-2"]', "SM_CURRENT_HOST": "algo-2", "SM_NUM_GPUS": "4"}
PET = {
    "PET_NNODES": "2",
    "PET_NODE_RANK": "1",
    "PET_NPROC_PER_NODE": "auto",
    "PET_MASTER_ADDR": "job-node-0-0.job",
    "PET_MASTER_PORT": "29400",
}
BATCH = {
    "SLURM_JOB_ID": "7",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "0",
    "SLURM_NODEID": "0",
    "SLURM_JOB_NODELIST": "n[1-2]",
}
STEP = {
    **BATCH,
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "1",
    "SLURM_NODEID": "1",
    "SLURM_LOCALID": "0",
}


@pytest.mark.parametrize(
    ("line", "environment", "node_rank", "num_nodes", "master"),
    [
        ("", tf_config("w-0:2222", "w-1:2222", index=1), 1, 2, "w-0:2222"),
        ("", SAGEMAKER, 1, 2, "algo-1:12345"),
        ("", PET, 1, 2, "job-node-0-0.job:29400"),
        ("", STEP, 1, 2, "n1:12345"),
        ("--nnodes 2", STEP, 1, 2, "n1:12345"),
        (
            "--nnodes 2",
            {"JOB_COMPLETION_INDEX": "1", "MASTER_ADDR": "job-0.job"},
            1,
            2,
            "job-0.job",
        ),
        (
            "--nnodes 2 --master-addr job-0.job:7",
            {"JOB_COMPLETION_INDEX": "1"},
            1,
            2,
            "job-0.job:7",
        ),
        # A shell, on one host or in an allocation that holds more.
        ("", {}, 0, 1, None),
        ("", BATCH, 0, 1, None),
        ("-H n1:2,n2:2", BATCH, 0, 1, None),
        ("", {**STEP, "TFDDL_ALONE": "1"}, 0, 1, None),
        ("--nnodes 1", STEP, 0, 1, None),
        ("", tf_config("w-0:2222", index=0), 0, 1, None),
        # Within a worker of another tfddlrun, on one host and on two.
        ("", {**tf_config("a:1", "a:2", index=1), "TFDDL_RESTARTS": "0"}, 0, 1, None),
        ("", {**tf_config("a:1", "b:2", index=1), "TFDDL_RESTARTS": "0"}, 0, 1, None),
    ],
)
def test_nodes_of_engines(
    line: str, environment: dict[str, str], node_rank: int, num_nodes: int, master: str | None
) -> None:
    arguments = make_parser("x").parse_args([*line.split(), "true"])
    node = node_flags.read_nodes(arguments, environment)
    if num_nodes == 1:
        assert node is None
        return
    assert node is not None
    assert (node.node_rank, node.num_nodes) == (node_rank, num_nodes)
    assert node.master is not None
    assert node.master.startswith(str(master))


@pytest.mark.parametrize(
    ("line", "environment", "message"),
    [
        ("", {"JOB_COMPLETION_INDEX": "1"}, "JOB_COMPLETION_INDEX is 1: this is a pod of an Index"),
        ("--nnodes 3", STEP, "--nnodes is 3, but there are 2 by SLURM_STEP_NODELIST"),
        ("-H n1:2,n2:2", STEP, "names the hosts, but this is node 1 of 2 (SLURM_STEP_NODELIST"),
        ("-H a:2,b:2", SAGEMAKER, "names the hosts, but this is node 1 of 2 (SM_HOSTS"),
        (
            "",
            {
                **STEP,
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
                "SLURM_NODEID": "0",
                "SLURM_LOCALID": "1",
            },
            "srun started tfddlrun 4 times on 2 hosts; it must run once on each, and starts",
        ),
        ("", tf_config("a:1", "a:2", index=1), "TF_CONFIG names 2 workers on 1 hosts; for tfddlr"),
        (
            "",
            {
                "OMPI_COMM_WORLD_RANK": "1",
                "OMPI_COMM_WORLD_SIZE": "2",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            "Open MPI started tfddlrun 2 times, 2 of them on this host",
        ),
        ("", {"PET_NNODES": "2"}, "PET_NODE_RANK is not set"),
    ],
)
def test_engines_that_dont_say_enough(line: str, environment: dict[str, str], message: str) -> None:
    arguments = make_parser("x").parse_args([*line.split(), "true"])
    with pytest.raises(LaunchError, match=re.escape(message)) as caught:
        node_flags.read_nodes(arguments, environment)
    assert "HINT: " in str(caught.value)
    assert "--nnodes 1" in str(caught.value)


NODE = NodeRank(1, 2, master="a:7")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: NodeOptions(NodeRank(0, 1)), "the number of nodes is 1; it must be at least 2"),
        (
            lambda: NodeOptions(NO_MASTER),
            "this is node 2 of 3 (JOB_COMPLETION_INDEX), and the address of node 0 isn't given. "
            "HINT: --master-addr HOST[:PORT], the same on all nodes, or MASTER_ADDR in the "
            "environment",
        ),
        (lambda: NodeOptions(NODE, timeout_s=0.0), "--start-timeout is 0.0; it must be above 0 s"),
        (
            lambda: JobOptions(
                num_workers=1,
                command=("true",),
                nodes=NodeOptions(NODE),
                restarts=RestartOptions(max_restarts=1),
            ),
            "--max-restarts and --min-np can't be used with several nodes, where no tfddlrun knows "
            "how the others' workers end. HINT: let the engine start all nodes again",
        ),
    ],
)
def test_options_are_checked(options: Any, message: str) -> None:
    with pytest.raises(LaunchError, match=re.escape(message)):
        options()


def facts(identity: str, *ports: int, address: str = "") -> NodeFacts:
    return NodeFacts("", ports=ports, address=address, identity=identity)


@pytest.mark.parametrize(
    ("nodes", "hosts", "addresses"),
    [
        ([facts("x", 1, 2), facts("y", 1)], ["a", "10.0.0.2"], ["a", "10.0.0.2"]),
        ([facts("x", 1), facts("y", 1, address="10.9.0.2")], ["a", "b"], ["a", "10.9.0.2"]),
        # Two launchers on one machine.
        ([facts("x", 1), facts("x", 2), facts("y", 1)], ["a", "10.0.0.1", "c"], ["a", "a", "c"]),
        ([facts("x", 1), facts("x", 2)], ["localhost", "127.0.0.1"], ["127.0.0.1", "127.0.0.1"]),
        ([facts("x", 1), facts("x", 2)], ["::1", "::1"], ["127.0.0.1", "127.0.0.1"]),
    ],
)
def test_places(nodes: list[NodeFacts], hosts: list[str], addresses: list[str]) -> None:
    allocations = make_allocations(nodes, hosts, node_rank=1, interface="ib0")
    assert [place.address for place in allocations] == addresses
    assert [place.ports for place in allocations] == [node.ports for node in nodes]
    assert [place.host for place in allocations] == ["node 0", "", "node 2"][: len(nodes)]
    assert [place.interface for place in allocations] == ["", "ib0", ""][: len(nodes)]


@pytest.mark.parametrize(
    ("nodes", "hosts", "message"),
    [
        (
            [facts("x", 1), facts("y", 1)],
            ["localhost", "10.0.0.2"],
            "node 0 is reached at localhost, which other hosts can't reach. HINT: --master-addr",
        ),
        (
            [facts("x", 1), facts("y", 1), facts("y", 2)],
            ["10.0.0.1", "127.0.0.1", "b"],
            "node 1 is reached at 127.0.0.1, which other hosts can't reach",
        ),
        (
            [facts("x", *range(1, 701)), facts("y", *range(1, 701))],
            ["a", "b"],
            "the 2 nodes have 1400 workers; at most 1024 can take part",
        ),
    ],
)
def test_nodes_that_cant_become_one_job(
    nodes: list[NodeFacts], hosts: list[str], message: str
) -> None:
    with pytest.raises(LaunchError, match=re.escape(message)):
        make_allocations(nodes, hosts, node_rank=0)


GOOD = {"version": __version__, "ports": [1, 65535], "address": "", "identity": "x"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"ports": []},
        {"ports": "12"},
        {"ports": [0]},
        {"ports": [65536]},
        {"ports": [True]},
        {"ports": ["1"]},
        {"ports": [1] * 1025},
        {"address": None},
        {"identity": 3},
    ],
)
def test_what_other_nodes_say_is_checked(wrong: dict[str, Any]) -> None:
    assert NodeFacts.read(GOOD, node_rank=1).ports == (1, 65535)
    with pytest.raises(LaunchError, match="node 1 has sent something that is not a node's ports"):
        NodeFacts.read({**GOOD, **wrong}, node_rank=1)
    with pytest.raises(LaunchError, match="node 3 has tfddl 0.0.9, but this one .* HINT: install"):
        NodeFacts.read({**GOOD, "version": "0.0.9"}, node_rank=3)


def test_who_waits_for_another_node_has_not_stalled() -> None:
    """Rank 0 waits in an operation; whether for itself or for another host's isn't known here."""
    for has_all, expected in ((True, {0}), (False, set())):
        watch = StallDetector(5.0, has_all_workers=has_all)
        waiting = WorkerProgress(beats=9, steps=3, begun=7, ended=6, stage=Stage.TRAINING)
        for now_s in (0.0, 10.0):
            found = watch.find({0: waiting}, stopped=frozenset(), now_s=now_s)
        assert set(found) == expected
        busy = WorkerProgress(beats=9, steps=3, begun=7, ended=7, stage=Stage.TRAINING)
        for now_s in (20.0, 30.0):
            found = watch.find({0: busy}, stopped=frozenset(), now_s=now_s)
        assert set(found) == {0}


def test_ports_are_held() -> None:
    with hold_ports(3) as ports, pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfddl._src.cluster.ports._candidates", lambda: list(ports))
        with pytest.raises(LaunchError, match="found 0 free ports of the 1 that are needed"):
            free_ports(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tfddl._src.cluster.ports._candidates", lambda: list(ports))
        with hold_ports(2, excluded=[ports[0]]) as others:
            assert set(others) == set(ports[1:])


@contextmanager
def nodes(
    *lines: tuple[str, ...], cwd: Path, address: str = "127.0.0.1"
) -> Iterator[list[subprocess.Popen[str]]]:
    """As many `tfddlrun` as there are lines, which meet on this machine."""
    (port,) = free_ports(1)
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                launched(
                    f"--nnodes={len(lines)}",
                    f"--node-rank={rank}",
                    f"--master-addr={address}:{port}",
                    *line,
                    cwd=cwd,
                )
            )
            for rank, line in enumerate(lines)
        ]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Of each, the status, stdout and stderr."""
    outputs = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    return [(p.returncode, *output) for p, output in zip(processes, outputs, strict=True)]


TELL = """
names = ("TFDDL_SECRET", "HOROVOD_RANK", "HOROVOD_LOCAL_SIZE", "RANK", "SLURM_PROCID", "MINE")
found = {name: os.environ.get(name) for name in names}
print(json.dumps([task, found]))
"""


def test_two_nodes_become_one_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("SLURM_PROCID", "7")
    monkeypatch.setenv("MINE", "yes")
    logs = ("--output-filename", "logs", "--horovod")
    lines = (("-np", "2", *logs, *worker(TELL)), ("-np", "1", *logs, *worker(TELL)))
    with nodes(*lines, cwd=tmp_path) as processes:
        (status, out, err), (other_status, other_out, other_err) = ends(processes)
    assert (status, other_status) == (0, 0), err + other_err
    found = {}
    for line in (out + other_out).splitlines():
        prefix, text = line.split(" ", 1)
        found[prefix] = json.loads(text)
    assert sorted(found) == ["[0]", "[1]", "[2]"]
    assert {line.split()[0] for line in other_out.splitlines()} == {"[2]"}
    clusters = [task["cluster"]["worker"] for task, _ in found.values()]
    assert clusters[0] == clusters[1] == clusters[2]
    assert len(set(clusters[0])) == 3
    assert {address.rpartition(":")[0] for address in clusters[0]} == {"127.0.0.1"}
    secrets = set()
    for prefix, (task, variables) in found.items():
        assert f"[{task['task']['index']}]" == prefix
        assert variables["HOROVOD_RANK"] == prefix.strip("[]")
        assert variables["HOROVOD_LOCAL_SIZE"] == "3"
        assert (variables["RANK"], variables["SLURM_PROCID"]) == (None, None)
        assert variables["MINE"] == "yes"
        secrets.add(variables["TFDDL_SECRET"])
    (secret,) = secrets
    assert re.fullmatch("[0-9a-f]{64}", secret)
    assert re.search(r"node 0 of 2, rendezvous at 127\.0\.0\.1:\d+ \(--nnodes, ", err)
    assert "tfddlrun: all 2 nodes have joined; rank 0-1 of 3 here" in err
    assert "tfddlrun: all 2 nodes have joined; rank 2 of 3 here" in other_err
    assert sorted(os.listdir(tmp_path / "logs")) == ["rank.0", "rank.1", "rank.2"]


def test_each_node_reports_its_own_failure(tmp_path: Path) -> None:
    script = "sys.exit(3 + rank)"
    with nodes(("-np", "1", *worker(script)), ("-np", "1", *worker(script)), cwd=tmp_path) as both:
        (status, _, err), (other_status, _, other_err) = ends(both)
    assert (status, other_status) == (3, 4)
    assert "tfddlrun: rank 0 failed: exit code 3 after" in err
    assert "tfddlrun: rank 1 failed: exit code 4 after" in other_err


def test_a_secret_that_all_nodes_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDDL_SECRET", SECRET)
    line = ("-np", "1", *worker("print(os.environ['TFDDL_SECRET'])"))
    with nodes(line, line, cwd=tmp_path) as processes:
        found = ends(processes)
    assert [(status, out) for status, out, _ in found] == [
        (0, f"[0] {SECRET}\n"),
        (0, f"[1] {SECRET}\n"),
    ]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_node_that_does_not_come_is_named(rank: int, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    options = ("--nnodes", "2", "--node-rank", str(rank), "--master-addr", f"127.0.0.1:{port}")
    line = (*options, "--start-timeout", "0.5", "-np", "1", *worker("say('started')"))
    done = launch(*line, cwd=tmp_path)
    assert done.returncode == 127
    assert "tfddlrun: the rendezvous of the nodes failed (ranks are nodes): " in done.stderr
    assert "gave up after 0.5 s" in done.stderr
    assert re.search(f"waiting for rank .?{1 - rank}", done.stderr)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_nodes_wait(number: signal.Signals, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    options = ("--nnodes", "2", "--node-rank", "1", "--master-addr", f"127.0.0.1:{port}")
    with launched(*options, "-np", "1", "true", cwd=tmp_path) as process:
        assert process.stderr is not None
        assert "rendezvous at" in process.stderr.readline()
        process.send_signal(number)
        _, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 128 + number
    assert err == f"tfddlrun: ended by {number.name}, and all workers with it\n"


def test_ctrl_c_ends_the_workers_of_this_node(tmp_path: Path) -> None:
    line = ("-np", "1", *worker("say(f'rank {rank}'); time.sleep(60)"))
    with nodes(line, line, cwd=tmp_path) as processes:
        left = pids(tmp_path, "rank 0", "rank 1")
        for process in processes:
            process.send_signal(signal.SIGINT)
        found = ends(processes)
    assert [status for status, _, _ in found] == [130, 130]
    assert not in_sessions(left)


def test_a_dry_run_says_how_the_nodes_meet(tmp_path: Path) -> None:
    options = ("--nnodes", "2", "--node-rank", "1", "--master-addr", "hostA", "-np", "2")
    done = launch(*options, "--horovod", "--dry-run", "echo", "a b", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[1].startswith(f"# node 1 of 2 ({BY_HAND}). Rendezvous at hostA:12345; then")
    assert [line for line in lines if line.startswith("# local")] == [
        "# local rank 0",
        "# local rank 1",
    ]
    assert "TF_CONFIG=" not in done.stdout
    assert "HOROVOD_RANK" not in done.stdout
    assert lines[3].endswith("echo 'a b'")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("-np", "auto", "-H", "a,b", "true"), "-np auto counts the GPUs of this host, and -H"),
        (("-np", "many", "true"), "'many' is neither a number nor 'auto'"),
        (("--nnodes", "2", "-np", "1", "true"), "nothing says which of the nodes this is"),
        (
            ("--nnodes", "2", "--node-rank", "0", "-np", "1", "true"),
            "this is node 0 of 2 (--nnodes, --node-rank), and the address of node 0 isn't given",
        ),
        (
            ("--nnodes=2", "--node-rank=0", "--master-addr=a", "--min-np=1", "-np=2", "true"),
            "--max-restarts and --min-np can't be used with several nodes",
        ),
        (
            ("--nnodes=2", "--node-rank=0", "--master-addr=a", "true"),
            "the number of workers is not given. HINT: -np 2, -np auto, or",
        ),
    ],
)
def test_mistakes_are_said(line: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = launch(*line, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_as_many_workers_as_there_are_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5")
    for flag in ("-np", "--nproc-per-node", "--nproc_per_node"):
        done = launch(flag, "auto", *worker("print('x')"), cwd=tmp_path)
        assert done.returncode == 0
        assert sorted(done.stdout.splitlines()) == [f"[{rank}] x" for rank in range(3)]
        assert done.stderr == (
            "tfddlrun: -np auto: 3 workers here; 3 visible GPUs (CUDA_VISIBLE_DEVICES)\n"
        )


def test_nccl_keeps_to_the_interface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "print(os.environ.get('NCCL_SOCKET_IFNAME'))"
    options = ("-H", "localhost:1", "--network-interface", "none,lo")
    for value, expected in ((None, "=lo"), ("eth7", "eth7")):
        if value:
            monkeypatch.setenv("NCCL_SOCKET_IFNAME", value)
        done = launch(*options, *worker(script), cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, f"[0] {expected}\n"), done.stderr
    monkeypatch.delenv("NCCL_SOCKET_IFNAME")
    assert launch("-np", "1", *worker(script), cwd=tmp_path).stdout == "[0] None\n"


@pytest.mark.parametrize("interface", [(), ("--network-interface", "ib0,veth0")])
def test_nodes_on_hosts_of_their_own(interface: tuple[str, ...], tmp_path: Path) -> None:
    """Two network namespaces, and no ssh between them."""
    script = TELL.replace('"MINE"', '"NCCL_SOCKET_IFNAME"')
    with two_hosts() as names, ExitStack() as stack:
        processes = []
        for rank, (name, number) in enumerate(zip(names, ("2", "1"), strict=True)):
            line = [*namespaces.inside(name), *LAUNCHER, "--nnodes=2", f"--node-rank={rank}"]
            line += ["--master-addr=10.77.0.1", *interface, "-np", number, *worker(script)]
            process = subprocess.Popen(
                line,
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        found = ends(processes)
    assert [status for status, _, _ in found] == [0, 0], found
    told = [json.loads(line[4:]) for _, out, _ in found for line in out.splitlines()]
    hosts = [address.rpartition(":")[0] for address in told[0][0]["cluster"]["worker"]]
    assert hosts == ["10.77.0.1", "10.77.0.1", "10.77.0.2"]
    assert {json.dumps(task["cluster"]) for task, _ in told} == {json.dumps(told[0][0]["cluster"])}
    assert {variables["NCCL_SOCKET_IFNAME"] for _, variables in told} == {
        "=veth0" if interface else None
    }


@pytest.mark.long
def test_two_nodes_train_together(tmp_path: Path) -> None:
    script = """
import tfddl
tfddl.init()
total = tfddl.allreduce(float(tfddl.rank() + 1), op="sum")
print(tfddl.rank(), tfddl.size(), float(total))
"""
    command = [sys.executable, "-c", script]
    with nodes(("-np", "2", *command), ("-np", "1", *command), cwd=tmp_path) as processes:
        outputs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sorted(line for out, _ in outputs for line in out.splitlines()) == [
        f"[{rank}] {rank} 3 6.0" for rank in range(3)
    ]


def test_a_meeting(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """By a rendezvous that logs, and then returns or fails at once."""
    free = free_ports(3)
    master = f"a:{free[0]}"
    told: list[dict[str, Any]] = []
    answer: Any = None

    def join(cluster: PartialCluster, **more: Any) -> SimpleNamespace:
        told.append({"cluster": cluster, **more})
        logging.getLogger("tfddl").warning("rank 1 is late")
        with pytest.raises(LaunchError, match="found 1 free ports of the 2"):  # the others are held
            free_ports(2)
        if isinstance(answer, Exception):
            raise answer
        other = {"ports": [7, 8], "address": "10.0.0.9", "identity": "other"}
        return SimpleNamespace(
            cluster=Cluster(("a:1", "b:1"), cluster.rank),
            metadata=[more["metadata"], {**other, "version": __version__}],
            secret=b"between nodes",
            close=lambda: told.append({}),
        )

    monkeypatch.setattr(rendezvous, "join", join)
    # In their order, so that node 0's own port would be the first choice.
    monkeypatch.setattr("tfddl._src.cluster.ports._candidates", lambda: list(free))
    monkeypatch.setattr("random.sample", lambda ports, k: ports[:k])
    options = NodeOptions(NodeRank(0, 2, master, job="j", source="X"), timeout_s=9.0)

    def meet(secret: str | None) -> JoinedNodes:
        with Signals() as signals:
            return join_nodes(
                options,
                num_workers=2,
                secret=secret,
                console=Console(signals, has_colours=False),
                signals=signals,
            )

    meeting = meet(None)
    asked, closed = told
    assert closed == {}
    assert asked["cluster"] == PartialCluster(0, 2, master, job="j", source="X")
    assert (asked["secret"], asked["timeout_s"]) == (b"", 9.0)
    assert meeting.secret == b"between nodes".hex()
    # Never node 0's own port.
    assert set(meeting.allocations[0].ports) == set(free[1:])
    assert meeting.allocations[1] == HostAllocation("node 1", "10.0.0.9", (7, 8))
    said = capfd.readouterr().err.splitlines()
    assert said == [
        f"tfddlrun: node 0 of 2, rendezvous at {master} (X)",
        "tfddlrun: rank 1 is late",
        "tfddlrun: all 2 nodes have joined; rank 0-1 of 4 here",
    ]
    # A secret that all know never goes over the network.
    assert meet(SECRET).secret == SECRET
    assert told[2]["secret"] == bytes.fromhex(SECRET)
    assert SECRET not in str(told[2]["metadata"])
    answer = StartError("rank 1 is missing")
    with pytest.raises(LaunchError, match=r"the nodes failed .*: rank 1 is missing"):
        meet(None)
    answer = RuntimeError("a mistake of ours")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        meet(None)
    assert not logging.getLogger("tfddl").handlers


def test_logs_of_all_nodes_sort_by_rank(tmp_path: Path) -> None:
    line = ("--output-filename", "logs", "true")
    with nodes(("-np", "10", *line), ("-np", "1", *line), cwd=tmp_path) as processes:
        assert [status for status, _, _ in ends(processes)] == [0, 0]
    assert sorted(os.listdir(tmp_path / "logs")) == [f"rank.{rank:02d}" for rank in range(11)]
