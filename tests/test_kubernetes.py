"""launch/kubernetes: validated against schemas, and run as pods that stand for Kubernetes'."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tfddl
from tests import kubernetes_schemas, plain_yaml, pods
from tests.hosts import two_hosts
from tests.namespaces import (
    ADDRESSES,
    missing_for_hosts,
    missing_for_sshd,
    switched_hosts,
)
from tests.pods import FOLDER, ROOT, Pod, documents
from tests.processes import wait_until

FILES = sorted(FOLDER.glob("*.yaml"))
JOBS = ("job", "jobset", "trainjob", "tfjob", "mpijob")
# Several of each pod's tfddlrun are one job; the launcher of an MPIJob starts all by itself.
NODES = ("job", "jobset", "trainjob", "tfjob")
SCRIPT = ROOT / "tests/scripts/engine_train.py"
TRAIN_S = 200.0

needs_schemas = pytest.mark.skipif(
    bool(lacks := kubernetes_schemas.missing_packages()), reason=lacks or "-"
)

MISTAKES = [
    ("job", "backoffLimit", "backofLimit"),
    ("job", "parallelism: 2", 'parallelism: "2"'),
    ("job", "operator: In", "op: In"),
    ("jobset", "maxRestarts: 3", "maxRestart: 3"),
    ("jobset", "readOnlyRootFilesystem", "readonlyRootFilesystem"),
    ("jobset", "completionMode: Indexed", "completionMode: 3"),
    ("trainjob", "onJobFailureReasons", "onJobFailureReason"),
    ("trainjob", "numProcPerNode: 1", "numProcPerNode: auto"),
    ("trainjob", "memory: 8Gi}", "memory: 8 Gi}"),
    ("tfjob", "restartPolicy: ExitCode", "restartpolicy: ExitCode"),
    ("tfjob", "backoffLimit: 6", "backoffLimit: six"),
    ("mpijob", "slotsPerWorker", "slotsPerWorkers"),
    ("mpijob", "launcherCreationPolicy", "launcherPolicy"),
    ("mpijob", "tcpSocket: {port: 2222}", "tcpSocket: {ports: 2222}"),
    ("mpijob", "mountPath: /data", "mountpath: /data"),
]


@needs_schemas
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_is_valid_by_the_schemas(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kubernetes_schemas.main([str(path)]) == 0, capsys.readouterr().out


@needs_schemas
@pytest.mark.parametrize(("name", "right", "wrong"), MISTAKES)
def test_a_mistake_is_found(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    assert right in text
    path = tmp_path / "wrong.yaml"
    path.write_text(text.replace(right, wrong))
    assert kubernetes_schemas.main([str(path)]) == 1


def pod_specs(name: str) -> list[dict[str, Any]]:
    """The specs of all kinds of pods of a manifest."""
    found = []

    def look(value: Any) -> None:
        if isinstance(value, dict):
            if "containers" in value:
                found.append(value)
            for item in value.values():
                look(item)
        elif isinstance(value, list):
            for item in value:
                look(item)

    look(documents(name))
    return found


@pytest.mark.parametrize("name", JOBS)
def test_pods_may_do_what_workers_need_and_no_more(name: str) -> None:
    """The Pod Security Standard "restricted", and more; what is written to is a volume."""
    for spec in pod_specs(name):
        (container,) = spec["containers"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert re.fullmatch(r"REGISTRY/tfddl(-ssh)?:\d+\.\d+\.\d+", container["image"])
        assert container["image"].endswith(f":{tfddl.__version__}")
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
        assert [mount["name"] for mount in mounts.values()] == list(volumes)
        assert list(mounts) == ["/data", "/checkpoints", "/tmp", "/dev/shm"]
        claims = {
            part["metadata"]["name"] for part in _all_documents("common", "PersistentVolumeClaim")
        }
        data = volumes["data"]["persistentVolumeClaim"]
        checkpoints = volumes["checkpoints"]["persistentVolumeClaim"]
        assert {data["claimName"], checkpoints["claimName"]} == claims
        assert data["readOnly"] is mounts["/data"]["readOnly"] is True
        assert "readOnly" not in checkpoints | mounts["/checkpoints"]
        # The secret comes from a Secret, which a command in common.yaml makes.
        variables = {variable["name"]: variable for variable in container["env"]}
        assert ("TFDDL_SECRET" in variables) == (name != "mpijob")
        if name != "mpijob":
            source = variables["TFDDL_SECRET"]["valueFrom"]["secretKeyRef"]
            text = (FOLDER / "common.yaml").read_text()
            made = re.search(r"kubectl create secret generic (\S+) --from-literal=(\w+)=", text)
            assert made is not None
            assert made.groups() == (source["name"], source["key"])
            assert "value" not in variables["TFDDL_SECRET"]
        limits = container["resources"]
        assert limits["requests"] == limits["limits"]


def _all_documents(name: str, kind: str) -> list[dict[str, Any]]:
    found = plain_yaml.documents((FOLDER / f"{name}.yaml").read_text())
    return [document for document in found if document["kind"] == kind]


def test_the_numbers_of_a_manifest_agree() -> None:
    job = documents("job")["Job"]["spec"]
    assert documents("job")["Service"]["metadata"]["name"] == job["template"]["spec"]["subdomain"]
    (replicated,) = documents("jobset")["JobSet"]["spec"]["replicatedJobs"]
    for spec in (job, replicated["template"]["spec"]):
        (container,) = spec["template"]["spec"]["containers"]
        assert spec["parallelism"] == spec["completions"] == 2
        assert "--nnodes=2" in container["command"]
    train = documents("trainjob")
    runtime = train["TrainingRuntime"]
    trainer = train["TrainJob"]["spec"]["trainer"]
    assert runtime["spec"]["mlPolicy"]["numNodes"] == trainer["numNodes"]
    assert train["TrainJob"]["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]


@pytest.mark.parametrize("name", JOBS)
def test_the_grace_period_is_within_that_of_the_pod(name: str) -> None:
    """After it the kubelet kills; tfddlrun must have ended its workers before."""
    for spec in pod_specs(name):
        for word in _words(name, spec):
            if word.startswith("--grace-period="):
                assert float(word.partition("=")[2]) < spec["terminationGracePeriodSeconds"]


def _words(name: str, spec: Mapping[str, Any]) -> list[str]:
    """The command of a container; a TrainJob replaces that of its runtime."""
    if name == "trainjob":
        return list(documents(name)["TrainJob"]["spec"]["trainer"]["command"])
    (container,) = spec["containers"]
    return list(container["command"])


def _engine(name: str, index: int) -> tuple[str, dict[str, str]]:
    """The name of a pod, and what its engine sets: see `tests.environments` for their sources."""
    if name == "job":
        return f"train-{index}", {"JOB_COMPLETION_INDEX": str(index)}
    if name == "jobset":
        return f"train-worker-0-{index}", {"JOB_COMPLETION_INDEX": str(index)}
    if name == "trainjob":
        trainer = documents(name)["TrainJob"]["spec"]["trainer"]
        return f"train-node-0-{index}", {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": str(index),
            "PET_MASTER_ADDR": "train-node-0-0.train",
            "PET_MASTER_PORT": "29400",
            "JOB_COMPLETION_INDEX": str(index),
        }
    workers = [f"train-worker-{other}.default.svc:2222" for other in range(2)]
    config = {
        "cluster": {"worker": workers},
        "task": {"type": "worker", "index": index},
        "environment": "cloud",
    }
    return f"train-worker-{index}", {"TF_CONFIG": json.dumps(config)}


def _hosts() -> dict[str, str]:
    """The names that DNS has of the pods, with their Services."""
    services = {
        "job": "train",
        "jobset": "train",
        "trainjob": "train",
        "tfjob": "default.svc",
    }
    return {
        f"{_engine(name, index)[0]}.{service}": ADDRESSES[index]
        for name, service in services.items()
        for index in range(2)
    }


@pytest.fixture(scope="module")
def networks() -> Iterator[tuple[str, str]]:
    with two_hosts() as names:
        yield names


def _run(
    name: str,
    command: list[str],
    networks: tuple[str, str],
    folder: Path,
    *,
    sigterm_after: list[Path] | None = None,
) -> list[int]:
    """Runs the pods of a manifest, with a command in place of its example; returns their statuses.

    Args:
        name: of the manifest.
        command: what tfddlrun runs instead of `python …`. Its own flags are the manifest's.
        networks: of the two pods.
        folder: where the volumes are.
        sigterm_after: once these files are there, SIGTERM comes to the second pod.
    """
    (spec,) = pod_specs(name)
    words = _words(name, spec)
    launcher = words[: words.index("python")]
    assert launcher[0] == "tfddlrun"
    volumes = {part: folder / part for part in ("data", "checkpoints")}
    for path in volumes.values():
        path.mkdir(exist_ok=True)
    with ExitStack() as stack:
        processes = []
        for index, network in enumerate(networks):
            host, engine = _engine(name, index)
            pod = Pod(host, network, spec, engine, command=(*launcher, *command))
            process = pods.running(pod, hosts=_hosts(), volumes=volumes, folder=folder)
            processes.append(stack.enter_context(process))
        if sigterm_after is not None:
            wait_until(lambda: all(path.exists() for path in sigterm_after), timeout_s=TRAIN_S)
            pods.terminate(processes[1], signal.SIGTERM)
        outputs = [process.communicate(timeout=TRAIN_S)[0] for process in processes]
        statuses = [process.returncode for process in processes]
    sys.stdout.write("\n".join(outputs))  # pytest shows it if the test fails
    return statuses


SHOW = """
import json, os, sys
from pathlib import Path
def can_write(folder):
    try:
        Path(folder, f"{os.getpid()}").touch()
    except OSError:
        return False
    return True
found = {
    "task": json.loads(os.environ["TF_CONFIG"]),
    "secret": os.environ["TFDDL_SECRET"],
    "home": os.environ["HOME"],
    "name": os.uname().nodename,
    "writable": [f for f in ("/", "/etc", "/data", "/checkpoints", "/dev/shm") if can_write(f)],
    "arguments": sys.argv[1:],
}
rank = found["task"]["task"]["index"]
Path(f"/checkpoints/rank.{rank}").write_text(json.dumps(found))
"""


@pytest.mark.parametrize("name", NODES)
def test_pods_become_one_job(name: str, networks: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    command = [sys.executable, "-S", "-c", SHOW, "a b"]
    assert _run(name, command, networks, tmp_path) == [0, 0]
    files = sorted((tmp_path / "checkpoints").glob("rank.*"))
    ranks = [json.loads(path.read_text()) for path in files]
    assert [found["task"]["task"]["index"] for found in ranks] == [0, 1]
    (workers,) = {tuple(found["task"]["cluster"]["worker"]) for found in ranks}
    assert [address.partition(":")[0] for address in workers] == list(ADDRESSES)
    assert [found["name"] for found in ranks] == [_engine(name, index)[0] for index in range(2)]
    for found in ranks:
        assert found["secret"] == "00" * 32
        assert found["home"] == "/tmp"
        assert found["writable"] == ["/checkpoints", "/dev/shm"]
        assert found["arguments"] == ["a b"]


# As a training that can save: a rank that gets SIGTERM tells the others, and all end.
SAVES = """
import json, os, signal, sys, time
from pathlib import Path
from tfddl._src.heartbeat import ProgressPage, WorkerFlags
page = ProgressPage.from_environment(os.environ)
page.record_pid()
page.set_flags(WorkerFlags.SAVES_ON_SIGTERM | WorkerFlags.SAVES_ON_REQUEST)
folder = Path("/checkpoints")
signal.signal(signal.SIGTERM, lambda *_: (folder / "sigterm").touch())
(folder / f"event.{json.loads(os.environ['TF_CONFIG'])['task']['index']}").touch()
while not (folder / "sigterm").exists():
    time.sleep(0.02)
page.set_flags(WorkerFlags.PREEMPTED)
sys.exit(75)
"""
# By manifest, the status that its engine takes for "again", and the lines that say so.
AGAIN = {"job": (75, "values: [75]"), "tfjob": (138, "restartPolicy: ExitCode")}


@pytest.mark.parametrize("name", AGAIN)
def test_all_pods_end_with_the_status_for_again(
    name: str, networks: tuple[str, str], tmp_path: Path
) -> None:
    """SIGTERM comes to one of them."""
    status, line = AGAIN[name]
    assert line in (FOLDER / f"{name}.yaml").read_text()
    events = [tmp_path / f"checkpoints/event.{rank}" for rank in range(2)]
    command = [sys.executable, "-c", SAVES]
    assert _run(name, command, networks, tmp_path, sigterm_after=events) == [status, status]


def _mpi_mounts(folder: Path) -> dict[str, Path]:
    """What the image has and the MPI operator mounts: keys, and the hostfile in the launcher."""
    worker, keys, mpi = (folder / name for name in ("worker", "keys", "mpi"))
    for path in (worker, keys, mpi):
        path.mkdir()
    for name in ("sshd_config", "ssh_config"):
        shutil.copy(FOLDER / name, worker)
    line = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / "id_rsa")]
    subprocess.run(line, check=True, timeout=30)
    shutil.copy(keys / "id_rsa.pub", keys / "authorized_keys")
    slots = documents("mpijob")["MPIJob"]["spec"]["slotsPerWorker"]
    names = (f"train-worker-{index}.train.default.svc slots={slots}\n" for index in range(2))
    (mpi / "hostfile").write_text("".join(names))
    where = documents("mpijob")["MPIJob"]["spec"]["sshAuthMountPath"]
    return {"/etc/ssh/worker": worker, where: keys, "/etc/mpi": mpi}


def test_the_launcher_of_an_mpijob_starts_workers_by_ssh(tmp_path: Path) -> None:
    if missing := missing_for_hosts() or missing_for_sshd():
        pytest.skip(missing)
    # Root's sshd takes it. It stays: another test's sshd may use it (see `tests.namespaces.sshd`).
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    replicas = documents("mpijob")["MPIJob"]["spec"]["mpiReplicaSpecs"]
    specs = {kind: replicas[kind]["template"]["spec"] for kind in ("Worker", "Launcher")}
    words = _words("mpijob", specs["Launcher"])
    command = (*words[: words.index("python")], sys.executable, "-S", "-c", SHOW, "a b")
    mounts = _mpi_mounts(tmp_path)
    volumes = {name: tmp_path / name for name in ("data", "checkpoints")}
    for path in volumes.values():
        path.mkdir()
    hosts = {f"train-worker-{index}.train.default.svc": ADDRESSES[index] for index in range(2)}
    with switched_hosts(3) as networks, ExitStack() as stack:

        def start(pod: Pod) -> subprocess.Popen[str]:
            process = pods.running(pod, hosts=hosts, volumes=volumes, folder=tmp_path)
            return stack.enter_context(process)

        workers = [
            start(Pod(f"train-worker-{index}", networks[index], specs["Worker"], mounts=mounts))
            for index in range(2)
        ]
        for worker in workers:
            assert worker.stdout is not None
            while "Server listening on 0.0.0.0 port 2222" not in (said := worker.stdout.readline()):
                assert said, "sshd has ended"
        engine = {"K_MPI_JOB_ROLE": "launcher", "NVIDIA_VISIBLE_DEVICES": ""}
        pod = Pod("train-launcher", networks[2], specs["Launcher"], engine, mounts, command)
        launcher = start(pod)
        output, _ = launcher.communicate(timeout=TRAIN_S)
        assert launcher.returncode == 0, output
    files = sorted(volumes["checkpoints"].glob("rank.*"))
    ranks = [json.loads(path.read_text()) for path in files]
    assert [found["name"] for found in ranks] == ["train-worker-0", "train-worker-1"]
    for found in ranks:
        addresses = found["task"]["cluster"]["worker"]
        assert [address.rpartition(":")[0] for address in addresses] == list(hosts)
        assert found["writable"] == ["/checkpoints", "/dev/shm"]
        assert found["arguments"] == ["a b"]


@pytest.mark.long
@pytest.mark.parametrize("name", AGAIN)
def test_saves_when_a_pod_is_to_end_and_resumes_in_new_pods(
    name: str, networks: tuple[str, str], tmp_path: Path
) -> None:
    saved, _ = AGAIN[name]
    (tmp_path / "data").mkdir()
    shutil.copy(SCRIPT, tmp_path / "data/train.py")
    train = ["python", "/data/train.py", "/checkpoints"]
    checkpoints = tmp_path / "checkpoints"
    events = [checkpoints / f"event.{rank}" for rank in range(2)]
    found = _run(name, [*train, "wait"], networks, tmp_path, sigterm_after=events)
    assert found == [saved, saved]
    assert not list(checkpoints.glob("rank.*"))
    assert _run(name, [*train, "wait"], networks, tmp_path) == [0, 0]
    ranks = [json.loads((checkpoints / f"rank.{rank}").read_text()) for rank in range(2)]
    alone = tmp_path / "alone"
    alone.mkdir()
    weights = _alone(alone)
    for found_rank in ranks:
        np.testing.assert_allclose(found_rank["weights"], weights, rtol=1e-4, atol=1e-5)


def _alone(folder: Path) -> list[float]:
    """The weights of one worker."""
    environment = {**os.environ, "TFDDL_ALONE": "1", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(SCRIPT), str(folder)]
    subprocess.run(line, env=environment, check=True, timeout=TRAIN_S)
    weights: list[float] = json.loads((folder / "rank.0").read_text())["weights"]
    return weights
