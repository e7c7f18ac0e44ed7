"""How jobs begin, and how they fail to: real processes that call `tfddl.init()`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import fork_server
from tests.group import ROOT, Groups, workers
from tests.launching import launch
from tfddl._src.cluster import Cluster
from tfddl._src.cluster.environments import tf_config
from tfddl._src.cluster.ports import free_ports
from tfddl.errors import StartError


def _run(script: str, log: Path, **variables: str) -> tuple[int, str]:
    process = fork_server.start(
        "tests.fork_server:execute", script, environ={**os.environ, **variables}, log=log
    )
    try:
        return process.wait(timeout=90), log.read_text()
    finally:
        process.kill()


def test_importing_tfddl_loads_no_tensorflow() -> None:
    script = (
        "import sys, tfddl, tfddl._src.cluster, tfddl._src.launcher.main, tfddl.errors\n"
        "import tfddl._src.sharding, tfddl._src.comm.native\n"
        "tfddl.shard_range(5, 0, 2), dir(tfddl)\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=90, check=True)


def test_a_script_without_a_cluster_is_one_worker_and_has_no_server(tmp_path: Path) -> None:
    code, output = _run(
        "import tfddl, tensorflow as tf\n"
        "assert not tfddl.is_initialized()\n"
        "tfddl.init(); tfddl.init()\n"
        "assert (tfddl.rank(), tfddl.size(), tfddl.local_rank()) == (0, 1, 0)\n"
        "assert (tfddl.local_size(), tfddl.cross_rank(), tfddl.cross_size()) == (1, 0, 1)\n"
        "x = tf.constant([1.0, 2.0])\n"
        "for op in tfddl.ReduceOp: assert (tfddl.allreduce(x, op).numpy() == [1, 2]).all()\n"
        "assert tfddl.allgather(x).shape == (2,) and tfddl.broadcast_object('a') == 'a'\n"
        "assert tfddl.allgather_object(1) == [1]; tfddl.barrier()\n"
        "import pathlib, os\n"
        "listening = [line.split()[9] for name in ('tcp', 'tcp6')\n"
        "    for line in pathlib.Path('/proc/net/' + name).read_text().splitlines()[1:]\n"
        "    if line.split()[3] == '0A']\n"
        "descriptors = list(pathlib.Path('/proc/self/fd').iterdir())\n"
        "mine = [os.readlink(p) for p in descriptors if p.is_symlink()]\n"
        "assert not [i for i in listening if f'socket:[{i}]' in mine]\n"
        "assert tfddl.strategy().num_replicas_in_sync == 1\n"
        "tfddl.shutdown(); assert not tfddl.is_initialized()\n"
        "try: tfddl.rank()\n"
        "except ValueError as error: assert 'call tfddl.init() first' in str(error)\n"
        "else: raise SystemExit('no error')\n"
        "tfddl.init(); tfddl.rank()\n",
        tmp_path / "log",
    )
    assert code == 0, output


REFUSED = {
    "tfddl.init(collective='nccl')": 'collective="nccl" needs GPUs, but TensorFlow sees none',
    "tfddl.init(collective='mpi')": "collective is 'mpi'; it must be one of auto, ring, nccl",
    "tfddl.init(between_hosts='udp')": "between_hosts is 'udp'; it must be one of auto, tcp, ring",
    "tfddl.init(collective='ring', between_hosts='tcp')": (
        "collective is 'ring', which all workers use, on whatever host; between_hosts='tcp'"
    ),
    "tfddl.init(intra_op_threads=0)": "intra_op_threads is 0; it must be at least 1, or None",
    "tfddl.init(timeout_s=-1)": "timeout_s is -1; it must be 0 (never) or more",
    "os.environ['TF_CONFIG'] = two_workers; tfddl.init(timeout_s=0.2)": (
        "gave up after 0.2 s: rank 0 of 2 is waiting for rank 1"
    ),
    "del os.environ['TF_CONFIG']; tfddl.init(); tfddl.init(intra_op_threads=3)": (
        "tfddl.init() was called before with other settings"
    ),
}


def test_refusals(tmp_path: Path) -> None:
    """One after the other in one process: what is refused leaves nothing behind."""
    addresses = tuple(f"127.0.0.1:{port}" for port in free_ports(2))
    code, output = _run(
        "import json, os, tensorflow as tf, tfddl\n"
        f"two_workers = {tf_config.render(Cluster(addresses, 0))!r}\n"
        f"for line in {list(REFUSED)!r}:\n"
        "    assert not tfddl.is_initialized()\n"
        "    try: exec(line)\n"
        "    except tfddl.errors.StartError as error: print('refused', json.dumps(str(error)))\n"
        "assert tfddl.is_initialized()\n",
        tmp_path / "log",
    )
    assert code == 0, output
    refused = [line for line in output.splitlines() if line.startswith("refused ")]
    for line, message, found in zip(REFUSED, REFUSED.values(), refused, strict=True):
        assert json.loads(found.removeprefix("refused ")).startswith(message), line


def test_a_bad_tf_config_says_what_is_wrong(tmp_path: Path) -> None:
    code, output = _run(
        "import tfddl\ntfddl.init()",
        tmp_path / "log",
        TF_CONFIG='{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 2}}',
    )
    assert code == 1
    assert "TF_CONFIG names 2 workers but task.index is 2; it must be 0..1" in output


@pytest.mark.parametrize(
    ("asked", "gpus", "local_size", "expected"),
    [(None, 0, 4, "ring"), (None, 4, 4, "nccl"), ("ring", 4, 2, "ring"), ("nccl", 1, 1, "nccl")],
)
def test_choosing_the_collective(asked: str, gpus: int, local_size: int, expected: str) -> None:
    from tfddl._src.comm.process_group import Transport
    from tfddl._src.runtime import choose_transport

    choice = choose_transport(
        None if asked is None else Transport(asked), num_gpus=gpus, local_size=local_size
    )
    assert choice == expected


def test_more_workers_than_gpus() -> None:
    from tfddl._src.runtime import choose_transport

    with pytest.raises(StartError, match="4 workers run on this host, but TensorFlow sees 2 GPUs"):
        choose_transport(None, num_gpus=2, local_size=4)


def test_ranks_that_were_told_of_different_clusters_say_so(tmp_path: Path) -> None:
    ports = free_ports(2)
    told = [
        Cluster((f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"), 0),
        Cluster((f"127.0.0.1:{ports[0]}", f"localhost:{ports[1]}"), 1),
    ]
    with workers("import tfddl\ntfddl.init()", told, tmp_path) as processes:
        for process in processes:
            assert process.wait(timeout=90) != 0
    for number in range(2):
        output = (tmp_path / str(number)).read_text()
        assert "the workers have different descriptions of the cluster" in output
        assert f"localhost:{ports[1]}" in output


DIFFERENT = {
    "collective='ring' if rank else 'auto'": (
        "tfddl.init got collective='auto' on rank 0, but collective='ring' on rank 1. HINT"
    ),
    "between_hosts='ring' if rank else 'auto'": (
        "tfddl.init got between_hosts='auto' on rank 0, but between_hosts='ring' on rank 1. HINT"
    ),
}


def test_ranks_with_other_settings_say_so(tmp_path: Path) -> None:
    """One start after the other in the same processes: what is refused leaves nothing behind."""
    script = (
        "import json, os, pathlib, time, tfddl\n"
        "rank = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        f"for number, settings in enumerate({list(DIFFERENT)!r}):\n"
        "    try: exec(f'tfddl.init({settings})')\n"
        "    except tfddl.errors.DisagreementError as error: print('refused', error, flush=True)\n"
        "    (folder / f'ended {number} {rank}').touch()\n"
        "    while not (folder / f'ended {number} {1 - rank}').exists(): time.sleep(0.01)\n"
    )
    with workers(script, _on_two_hosts(), tmp_path) as processes:
        assert [process.wait(timeout=90) for process in processes] == [0, 0]
    for number in range(2):
        output = (tmp_path / str(number)).read_text()
        for message in DIFFERENT.values():
            assert f"refused {message}" in output


def _on_two_hosts() -> list[Cluster]:
    """For which two addresses of this machine stand."""
    addresses = tuple(f"127.0.0.{h}:{port}" for h, port in enumerate(free_ports(2), start=1))
    return [Cluster(addresses, rank) for rank in range(2)]


@pytest.mark.parametrize("asked", ["auto", pytest.param("tcp", marks=pytest.mark.long)])
def test_hosts_whose_ports_cannot_be_reached(tmp_path: Path, asked: str) -> None:
    """Rank 0 listens where it doesn't say: to rank 1 that is a port behind a firewall."""
    script = (
        "import json, os, logging, tensorflow as tf, tfddl\n"
        "from tfddl._src.comm.native.tcp_connector import TcpConnector\n"
        "from tfddl._src.runtime import current\n"
        "rank = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        "if rank == 0: TcpConnector.port = property(lambda _: 9)\n"
        "from tfddl._src.runtime import native_setup; native_setup._REACH_S = 3.0\n"
        f"tfddl.init(between_hosts={asked!r})\n"
        "print(current().process_group.name, tfddl.allreduce(tf.constant([1.0]), 'sum').numpy())\n"
    )
    with workers(script, _on_two_hosts(), tmp_path) as processes:
        ended = [process.wait(timeout=90) for process in processes]
    outputs = [(tmp_path / str(number)).read_text() for number in range(2)]
    assert "rank 1 can't speak to other hosts by itself: can't reach rank 0 at" in outputs[1]
    if asked == "auto":
        assert ended == [0, 0], outputs
        assert all("RING [2.]" in output for output in outputs)
        assert "TensorFlow's RING speaks between hosts, which is slower: not all" in outputs[0]
        assert "HINT: let the hosts of the job reach all ports of each other" in outputs[0]
    else:
        assert 0 not in ended
        assert all(
            "StartError: between_hosts is 'tcp', but not all workers can reach" in output
            for output in outputs
        )


def test_a_worker_too_few_is_named(tmp_path: Path) -> None:
    ports = free_ports(2)
    addresses = tuple(f"127.0.0.1:{port}" for port in ports)
    script = "import tfddl\ntfddl.init(timeout_s=2)"
    with workers(script, [Cluster(addresses, 0)], tmp_path) as (process,):
        assert process.wait(timeout=90) == 1
    assert (
        f"gave up after 2 s: rank 0 of 2 is waiting for rank 1 ({addresses[1]})"
        in (tmp_path / "0").read_text()
    )


@pytest.mark.parametrize(
    ("hosts", "collective", "expected"),
    [
        pytest.param(
            *((2,), "auto", "in allreduce average of float32 (): rank 1 hasn't called it"),
            marks=pytest.mark.long,
        ),
        ((2,), "ring", "comparing the ranks before allreduce average of float32 (): rank 1 hasn't"),
        ((2, 1), "auto", "ranks before allreduce average of float32 (): rank 2 hasn't called it"),
    ],
)
def test_a_rank_that_does_not_come_ends_the_others_wait(
    groups: Groups, hosts: tuple[int, ...], collective: str, expected: str
) -> None:
    limits = {"timeout_s": 5.0, "start_timeout_s": 60.0}
    group = groups(sum(hosts), hosts=hosts, collective=collective, **limits)
    outcomes = group.outcomes("tests.cases.collectives:absent_rank")
    group.close()
    assert outcomes[-1] == (True, "absent")
    assert outcomes[0][0]
    assert expected in outcomes[0][1]


@pytest.mark.long
def test_a_killed_worker_ends_the_job(tmp_path: Path) -> None:
    """The launcher names it, and nobody waits for ever."""
    script = (
        "import os, signal, tfddl, tensorflow as tf\n"
        "tfddl.init()\n"
        "for step in range(10_000):\n"
        "    tfddl.allreduce(tf.constant(1.0))\n"
        "    if step == 5 and tfddl.rank() == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    begin = time.monotonic()
    done = launch("-np", "2", sys.executable, "-c", script, cwd=ROOT, timeout_s=120)
    assert done.returncode == 128 + 9
    assert "rank 1" in done.stderr
    assert "SIGKILL" in done.stderr
    assert time.monotonic() - begin < 100
