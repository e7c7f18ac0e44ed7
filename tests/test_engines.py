"""Spark and Ray: what needs neither, and both as they are, where they are installed."""

import base64
import contextlib
import dataclasses
import functools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest

import tfddl.horovod.ray
import tfddl.horovod.spark
import tfddl.ray
import tfddl.spark
from tests.engine_training import environment, fail
from tests.group import ROOT
from tests.processes import in_sessions
from tfddl._src.block_rows import BlockRows
from tfddl._src.engines import spark_rank
from tfddl._src.engines.ray_options import choose_bundles
from tfddl._src.engines.ray_placement import Probe, worker_environments
from tfddl._src.engines.ray_rows import DatasetRows, _describe, _one_table
from tfddl._src.engines.spark import _host
from tfddl._src.engines.spark_rank import EngineJob, exchange_addresses, find_failure, run_rank
from tfddl._src.remote_call.call_end import CallEnd, Failure
from tfddl._src.remote_call.pickling import Call, dump_call
from tfddl.errors import DataError, LaunchError, UnsupportedError

# Not imported here: ray sets environment variables.
needs_spark = pytest.mark.skipif(
    find_spec("pyspark") is None or shutil.which("java") is None, reason="needs pyspark and Java"
)
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs ray")

HOSTS = ("hostA", "hostB", "hostA", "hostA", "hostB")


def _all_ranks(count: int, work: Callable[[int, Callable[[str], list[str]]], Any]) -> list[Any]:
    """Calls it for each rank in a thread, with a gathering of texts."""
    barrier = Barrier(count, timeout=60)
    texts = [""] * count

    def gather(rank: int, text: str) -> list[str]:
        texts[rank] = text
        barrier.wait()
        return list(texts)

    with ThreadPoolExecutor(count) as pool:
        ranks = [pool.submit(work, r, functools.partial(gather, r)) for r in range(count)]
        return [rank.result(timeout=120) for rank in ranks]


def test_ranks_of_a_host_get_different_ports_and_all_know_them() -> None:
    found = _all_ranks(5, lambda rank, gather: exchange_addresses(rank, HOSTS, gather))
    assert found == [found[0]] * 5
    assert tuple(host for host, _ in found[0]) == HOSTS
    assert len(set(found[0])) == 5


def _job(fn: Callable[..., Any], *args: Any, **more: Any) -> EngineJob:
    call = dump_call(Call(fn, args, {}))
    return EngineJob("tfddl-name", "ab" * 32, call, env={"GREETING": "hi"}, **more)


def _run_two(job: EngineJob) -> list[CallEnd]:
    def work(rank: int, gather: Callable[[str], list[str]]) -> CallEnd:
        addresses = exchange_addresses(rank, ["127.0.0.1"] * 2, gather)
        env = {"CUDA_VISIBLE_DEVICES": str(rank)}
        return run_rank(job, rank=rank, addresses=addresses, env=env)

    return _all_ranks(2, work)


def test_each_rank_has_its_own_launcher_and_one_cluster() -> None:
    names = ("TF_CONFIG", "TFDDL_SECRET", "TFDDL_RESTARTS", "GREETING", "CUDA_VISIBLE_DEVICES")
    ends = _run_two(_job(environment, *names, num_restarts=3))
    assert [end.failure for end in ends] == [None, None]
    found = [pickle.loads(end.results[rank]) for rank, end in enumerate(ends)]
    assert [values[1:] for values in found] == [["ab" * 32, "3", "hi", str(r)] for r in range(2)]
    configs = [json.loads(values[0]) for values in found]
    assert configs[0]["cluster"] == configs[1]["cluster"]
    assert [config["task"]["index"] for config in configs] == [0, 1]


def test_a_failure_travels_in_the_engine_s_message() -> None:
    job = _job(fail)
    error = LookupError("no such example")
    failure = Failure("rank 2 failed:\nTraceback …", pickle.dumps(error))
    raised = spark_rank.failure_of(job, failure, host="hostB")
    assert str(raised).startswith("rank 2 on hostB failed:\nTraceback …\n[tfddl-name:")
    found = find_failure(job, f"Job aborted due to stage failure: {raised}\n\tat java.lang.Thread")
    assert str(found) == "rank 2 on hostB failed:\nTraceback …"
    assert repr(found.__cause__) == repr(error) if found is not None else False
    assert find_failure(dataclasses.replace(job, name="tfddl-other"), str(raised)) is None
    large = spark_rank.failure_of(job, Failure("text", bytes(1 << 20)), host="hostB")
    assert len(base64.b64decode(str(large).rpartition(":")[2].strip("]"))) < 1000


def test_another_version_of_tfddl_is_named() -> None:
    job = _job(environment, version="0.0.1")
    text = f"rank 0 on hostA has tfddl {tfddl.__version__}, but the caller 0.0.1. HINT: "
    with pytest.raises(LaunchError, match=text):
        run_rank(job, rank=0, addresses=[("hostA", 1)], env={})


@pytest.mark.parametrize("address", ["10.0.0.1:3456", "10.0.0.1"])
def test_a_task_s_host(address: str) -> None:
    assert _host(address) == "10.0.0.1"
    assert _host("[fe80::1]:12") == "[fe80::1]"


def test_what_isn_t_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ray", "pyspark"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LaunchError, match=r"pip install 'tfddl\[spark\]'"):
        tfddl.spark.run(environment)
    for use in (
        lambda: tfddl.ray.RayExecutor(num_workers=1),
        lambda: tfddl.ray.TfddlTrainer,
        lambda: tfddl.ray.ReportCheckpoint,
    ):
        with pytest.raises(LaunchError, match=r"pip install 'tfddl\[ray\]'"):
            use()
    assert not hasattr(tfddl.ray, "nonsense")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "num_workers is None and num_hosts None; one of the two"),
        ({"num_workers": 2, "num_hosts": 2}, "num_workers is 2 and num_hosts 2; one of the two"),
        ({"num_workers": 0}, "the number of workers is 0"),
        ({"num_workers": 1, "cpus_per_worker": -1}, "cpus_per_worker is -1"),
        ({"num_workers": 1, "gpus_per_worker": 1}, "HINT: use_gpu=True"),
    ],
)
def test_ray_s_numbers_are_checked_first(options: dict[str, Any], text: str) -> None:
    with pytest.raises(LaunchError, match=text):
        tfddl.ray.RayExecutor(**options)
    with pytest.raises(LaunchError, match="timeout_s is 0; it must be above 0 seconds"):
        tfddl.ray.RayExecutor.create_settings(timeout_s=0)


def test_horovod_s_names_are_these() -> None:
    with pytest.raises(UnsupportedError, match="use_mpi=True.* isn't supported: Spark places the"):
        tfddl.horovod.spark.run(environment, use_mpi=True)
    executor = tfddl.horovod.ray.RayExecutor
    assert issubclass(executor, tfddl.ray.RayExecutor)
    assert executor.create_settings(40, ssh_str="key").timeout_s == 40


def test_bundles_of_a_group_that_is_there() -> None:
    there = [{"CPU": 1}, {"CPU": 2, "GPU": 1}, {"CPU": 2}, {"CPU": 4, "GPU": 1}]
    assert choose_bundles(there, [{"CPU": 1}] * 2) == [2, 3]
    assert choose_bundles(there, [{"CPU": 2, "GPU": 1}] * 2) == [1, 3]
    with pytest.raises(LaunchError, match="has 2 bundles with {'GPU': 1}, and the workers need 3"):
        choose_bundles(there, [{"GPU": 1}] * 3)


def _probe(host: str, *ports: int, version: str = tfddl.__version__) -> Probe:
    return Probe(host, ports, version)


def test_ray_s_workers_learn_who_they_are() -> None:
    probes = [_probe("a", 1, 2, 3), _probe("a", 2, 4, 6), _probe("b", 1, 5, 7)]
    environments = worker_environments(probes, timeout_s=7, extra={"A": "b"}, num_restarts=2)
    configs = [json.loads(environment["TF_CONFIG"]) for environment in environments]
    assert configs[0]["cluster"] == configs[1]["cluster"] == configs[2]["cluster"]
    addresses = configs[0]["cluster"]["worker"]
    assert [address.split(":")[0] for address in addresses] == ["a", "a", "b"]
    # Both of one host come from the same probe, which has seen them free at the same time.
    assert {int(address.split(":")[1]) for address in addresses[:2]} < {2, 4, 6}
    assert len(set(addresses)) == 3
    assert [config["task"]["index"] for config in configs] == [0, 1, 2]
    assert len({environment["TFDDL_SECRET"] for environment in environments}) == 1
    assert {e["TFDDL_RESTARTS"] + e["A"] for e in environments} == {"2b"}
    text = f"rank 1 on b has tfddl 0.0.1, but the driver {tfddl.__version__}. HINT: "
    with pytest.raises(LaunchError, match=text):
        worker_environments(
            [_probe("a", 1, 2), _probe("b", 1, 2, version="0.0.1")], timeout_s=None, extra={}
        )


@pytest.mark.parametrize("counts", [[7], [3, 0, 4], [0, 7, 0], [1, 1, 1, 4]])
def test_rows_of_blocks_are_those_of_the_array(counts: list[int]) -> None:
    whole = np.arange(14).reshape(7, 2)
    blocks = np.split(whole, np.cumsum(counts)[:-1])
    fetched: list[int] = []

    def fetch(block: int) -> np.ndarray:
        fetched.append(block)
        return blocks[block]

    rows = BlockRows(fetch, counts, (2,), whole.dtype)
    assert (len(rows), rows.shape, rows.dtype) == (7, (7, 2), whole.dtype)
    for indices in ([6, 0, 3, 3], [2], list(range(7))):
        fetched.clear()
        np.testing.assert_array_equal(rows[np.array(indices)], whole[indices])
        assert len(fetched) == len(set(fetched))
    for key in (slice(2, 5), -1, np.array([-7, 6]), [[1, -2]], []):
        np.testing.assert_array_equal(rows[key], whole[key])
    for wrong, error in ((np.ones(7, bool), TypeError), (7, IndexError), ([0, -8], IndexError)):
        with pytest.raises(error, match="rows"):
            rows[wrong]


def test_a_ray_dataset_s_columns() -> None:
    counts = (3, 0, 4)
    blocks = [{"x": np.zeros((n, 2), "float32"), "s": np.array(["a"] * n, object)} for n in counts]
    found = [_describe(block) for block in blocks]
    table = _one_table("train", found)
    rows = DatasetRows("train", ["ref"] * 3, counts, table)
    assert (len(rows), rows["x"].shape) == (7, (7, 2))
    assert rows["x"].dtype == np.dtype("float32")
    assert repr(pickle.loads(pickle.dumps(rows))) == "DatasetRows('train': 7 rows of x, s)"
    with pytest.raises(DataError, match="'train' has no column 'z'; it has 'x', 's'"):
        rows["z"]
    with pytest.raises(AttributeError, match="has no to_tf: it isn't an iterator of Ray Data"):
        rows.to_tf("x", "y")


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([], "the dataset 'train' has no rows"),
        ([{"x": np.zeros(0)}], "the dataset 'train' has no rows"),
        (
            [{"x": np.zeros((2, 3))}, {"x": np.zeros((2, 4))}],
            r"column 'x' .* \(\(3,\), dtype\('float64'\)\) in block 0, and .* in block 1",
        ),
        ([{"x": np.array([None, 1])}], "column 'x' .* has NoneType, int in block 0"),
        ([{"x": np.zeros(2)}, {"y": np.zeros(2)}], "column 'x' .* has nothing in block 1"),
    ],
)
def test_a_ray_dataset_that_is_no_table(blocks: list[dict[str, np.ndarray]], text: str) -> None:
    with pytest.raises(DataError, match=text):
        _one_table("train", [_describe(block) for block in blocks])


def drive(script: str, *arguments: str, cwd: Path) -> dict[str, Any]:
    """Runs a driver in a process of its own, and returns what it has reported."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/scripts/engines" / script), *arguments],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYSPARK_PYTHON": sys.executable,
            "LC_ALL": "C.UTF-8",  # By which Java encodes the names of files.
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=800)
    finally:  # Also what the driver has started: Spark's JVM, Ray's servers.
        for pid in in_sessions({process.pid}):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait(timeout=60)
    assert process.returncode == 0, stdout + stderr
    lines = [line for line in stdout.splitlines() if line.startswith('["')]
    return dict(map(json.loads, lines))


def _indices(configs: list[str]) -> list[int]:
    return [json.loads(config)["task"]["index"] for config in configs]


@pytest.mark.parametrize(
    "engine", [pytest.param("spark", marks=needs_spark), pytest.param("ray", marks=needs_ray)]
)
def test_two_workers_of_an_engine_add_up(engine: str, tmp_path: Path) -> None:
    """What these engines do beyond is in the long run."""
    assert drive("smoke_driver.py", engine, cwd=tmp_path) == {"results": [3.0, 3.0]}


@pytest.mark.long
@pytest.mark.timeout(900)
@needs_spark
def test_spark(tmp_path: Path) -> None:
    """Trains exactly, goes on after a killed worker, reports failures, leaves nothing."""
    found = drive("spark_driver.py", "local[2]", str(tmp_path), cwd=tmp_path)
    assert _indices([values[0] for values in found["results"]]) == [0, 1]
    assert [values[1:] for values in found["results"]] == [["0", "hi"]] * 2
    assert found["horovod"] == ["tfddl.horovod"] * 2
    assert found["description"] == "tfddl: environment on 2 workers"
    assert "3 workers were asked for, and local[2] has 2 slots" in found["too many"][0]
    assert len(found["killed"]) == 2
    for weights in found["killed"]:
        assert weights == pytest.approx(found["one"][0], abs=2e-6)
    text, cause = found["raised"]
    assert text.startswith("rank 1 on ")
    assert "KeyError: 'of start 1'" in text
    assert cause == "KeyError('of start 1')"
    assert " failed: killed by SIGKILL after " in found["end"][0]
    starts = {path.name for path in tmp_path.glob("raised *")}
    assert {"raised 1 0", "raised 1 1"} <= starts


@pytest.mark.long
@pytest.mark.timeout(900)
@needs_ray
def test_ray(tmp_path: Path) -> None:
    """The same with actors, which keep their state; the user starts again."""
    found = drive("ray_driver.py", str(tmp_path), cwd=tmp_path)
    assert "HINT: ray.init() first" in found["too early"][0]
    assert "HINT: start() first" in found["not started"][0]
    assert _indices([values[0] for values in found["results"]]) == [0, 1]
    assert [values[1] for values in found["results"]] == ["hi", "hi"]
    assert found["remote"] == [[], []]
    assert found["state"] == [[5, 5], [6, 6]]
    assert found["single"] == [7, [{"value": 7}, {"value": 6}]]
    assert re.match("rank [01] on ", found["error"][0])  # Both fail.
    assert found["error"][1].startswith("ValueError(")
    assert found["same processes"] is True
    assert found["two"][0] == found["two"][1]
    assert "Ray has not found 3 bundles of {'CPU': 1} (PACK) within 1 s" in found["too many"][0]
    assert found["killed"][0].startswith("rank 1 on ")
    assert "HINT: start() starts them again" in found["killed"][0]
    assert "HINT: start() first" in found["after"][0]
    for weights in found["resumed"]:
        assert weights == pytest.approx(found["two"][0], abs=2e-6)
    assert "KeyError: 'of start 1'" in found["raised"][0]
    assert "All workers were ended" in found["raised"][0]
    assert found["horovod"] == ["tfddl.horovod"] * 2


@pytest.mark.long
@pytest.mark.timeout(900)
@needs_ray
def test_ray_train(tmp_path: Path) -> None:
    """Three workers, two of which are lost, train as one process; Ray's results and errors."""
    found = drive("ray_train_driver.py", str(tmp_path), cwd=tmp_path)
    assert found["killed"]["weights"] == pytest.approx(found["alone"], abs=2e-6)
    assert found["metrics"]["loss"] == pytest.approx(found["killed"]["loss"][-1])
    assert (found["metrics"]["epoch"], found["metrics"]["steps"]) == (1, 9)
    # Each start resumes where the newest checkpoint was: within the epoch.
    assert found["starts"] == [
        {"size": 3, "first": [0, 0]},
        {"size": 3, "first": [0, 4]},
        {"size": 3, "first": [1, 3]},
    ]
    assert found["kept"] == [2, "None"]
    assert found["files"] == ["step-0000000018.npz"]
    assert found["unpicklable"][0] == "LaunchError"
    assert "can't be pickled: " in found["unpicklable"][1]
    assert "is of type _thread.lock" in found["unpicklable"][1]
    assert found["too many"][0] == "LaunchError"
    assert "Ray has not found 5 bundles of {'CPU': 1} (PACK) within 1 s" in found["too many"][1]
    assert found["version"][0] == "ControllerError"
    assert f"has tfddl {tfddl.__version__}, but the driver 0.0.1" in found["version"][1]
    assert found["raised"][0] == "WorkerGroupError"
    assert "KeyError: 'of rank 1'" in found["raised"][1]
    assert "has no iter_batches: it isn't an iterator of Ray Data" in found["iterator"][1]
    # Under Ray's own trainer, which sets the variable.
    assert found["legacy"]["legacy"] == "1"
    assert found["legacy"]["weights"] == pytest.approx(found["alone"], abs=2e-6)
    assert found["killed"]["legacy"] is None
    assert [trial[1:] for trial in found["tune"]] == [[1, "None"]] * 2
    assert found["tune"][0][0] == pytest.approx(found["tune"][1][0], abs=2e-6)


@pytest.mark.long
@pytest.mark.timeout(900)
@needs_ray
def test_ray_train_follows_the_nodes(tmp_path: Path) -> None:
    """A node is lost, and one worker trains on; another joins, and two end the training."""
    found = drive("ray_elastic_driver.py", str(tmp_path), cwd=tmp_path)
    assert found["starts"] == [
        {"size": 2, "first": [0, 0]},
        {"size": 1, "first": [0, 3]},
        {"size": 2, "first": [1, 2]},
    ]
    assert found["weights"] == pytest.approx(found["alone"], abs=2e-6)
    assert found["left"] == []
