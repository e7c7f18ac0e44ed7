"""GPUs on a machine without one: patched device lists, CUDA's driver replaced, kernels listed."""

import ctypes
import logging
import sys
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import tensorflow as tf

from tests import placement
from tfddl._src.cluster import Cluster
from tfddl._src.comm.nccl_group import NCCL_DTYPES, NcclGroup, host_device, make_tensorflow_group
from tfddl._src.comm.process_group import Transport
from tfddl._src.comm.tensorflow_group import TensorFlowGroup
from tfddl._src.runtime import Options, choose_transport, devices, startup_checks
from tfddl._src.runtime.gpu_discovery import check_gpu_sharing, compare_transports, gpu_identity
from tfddl.errors import DisagreementError, StartError

NCCL, RING = Transport.NCCL, Transport.RING
ON_ONE_HOST = tuple(f"a:{port}" for port in range(1, 5))


def see(monkeypatch: pytest.MonkeyPatch, num_gpus: int) -> dict[str, Any]:
    """Makes TensorFlow see GPUs; what is set up is noted instead."""
    gpus = [SimpleNamespace(name=f"/physical_device:GPU:{i}") for i in range(num_gpus)]
    noted: dict[str, Any] = {}
    visible = noted.setdefault

    def note(chosen: Any, kind: str) -> None:
        assert kind == "GPU"
        visible("gpu", chosen.name)

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: gpus)
    monkeypatch.setattr(tf.config, "set_visible_devices", note)
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus[:1])
    for module, name in (
        (tf.config.experimental, "set_memory_growth"),
        (tf.config.threading, "set_intra_op_parallelism_threads"),
        (tf.config.threading, "set_inter_op_parallelism_threads"),
    ):
        monkeypatch.setattr(module, name, lambda *_: None)
    return noted


@pytest.mark.parametrize(
    ("num_gpus", "rank", "expected"),
    [(4, 0, "0"), (4, 3, "3"), (8, 2, "2"), (1, 0, "0"), (1, 3, "0")],  # One visible to each.
)
def test_which_gpu_is_taken(
    monkeypatch: pytest.MonkeyPatch, num_gpus: int, rank: int, expected: str
) -> None:
    noted = see(monkeypatch, num_gpus)
    cluster = Cluster(ON_ONE_HOST, rank)
    assert devices.resolve_transport(cluster, Options()) is NCCL
    devices.set_up_gpus(cluster)
    assert noted["gpu"] == f"/physical_device:GPU:{expected}"
    with mock.patch.object(devices, "gpu_identity", str):
        assert devices.identity_of_gpu(cluster) == expected


def test_no_gpu_has_no_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    see(monkeypatch, 0)
    assert devices.identity_of_gpu(Cluster(ON_ONE_HOST, 0)) is None


@pytest.mark.parametrize(
    ("visible", "shown"), [(None, "isn't set"), ("0,1", "is '0,1'"), ("", "is ''")]
)
def test_fewer_gpus_than_workers(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, shown: str
) -> None:
    see(monkeypatch, 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(StartError) as caught:
        devices.resolve_transport(Cluster(ON_ONE_HOST, 0), Options())
    assert str(caught.value) == (
        "4 workers run on this host, but TensorFlow sees 2 GPUs (CUDA_VISIBLE_DEVICES "
        f"{shown}); every worker needs one of its own. HINT: start at most 2 workers here, or set "
        'CUDA_VISIBLE_DEVICES="" to train on CPUs.'
    )


@pytest.mark.parametrize(
    ("addresses", "line"),
    [
        ((), "tfddlrun -np 4 python train.py uses them all."),
        (("a:1", "b:1"), "4 workers per host (tfddlrun -H host:4,… python train.py) uses them"),
    ],
)
def test_idle_gpus(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    addresses: tuple[str, ...],
    line: str,
) -> None:
    see(monkeypatch, 4)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    devices.set_up_gpus(Cluster(addresses, 0))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert text.startswith("this host has 4 GPUs, but only one worker, which uses one; the others")
    assert line in text


@pytest.mark.parametrize(("num_gpus", "size"), [(0, 1), (1, 1), (1, 4), (4, 4), (8, 2)])
def test_no_gpu_is_called_idle(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, num_gpus: int, size: int
) -> None:
    see(monkeypatch, num_gpus)
    devices.set_up_gpus(Cluster(ON_ONE_HOST[:size], 0))
    assert not caplog.records


@pytest.mark.parametrize(("collective", "expected"), [(NCCL, NcclGroup), (RING, None)])
def test_ring_runs_on_the_host(collective: Transport, expected: type | None) -> None:
    device = "/job:worker/replica:0/task:3/device:GPU:0"
    assert host_device(device) == "/job:worker/replica:0/task:3/device:CPU:0"
    made = make_tensorflow_group(0, 2, "/device:GPU:0", collective)
    assert type(made) is (expected or TensorFlowGroup)
    assert made.device == ("/device:GPU:0" if collective is NCCL else "CPU:0")
    assert made.stays_on_device is (collective is NCCL)


class _Driver:
    """CUDA's: two GPUs, of which the second shows an instance."""

    def __init__(self, result: int = 0) -> None:
        self._result = result

    def cuInit(self, _: int) -> int:
        return self._result

    def cuDeviceGet(self, device: Any, index: int) -> int:
        device._obj.value = index
        return 0 if index < 2 else 101

    def cuDeviceGetPCIBusId(self, text: Any, size: int, device: ctypes.c_int) -> int:
        text.value = f"0000:3B:0{device.value}.0"[: size - 1].encode()
        return 0

    def cuDeviceGetUuid(self, raw: Any, device: ctypes.c_int) -> int:
        raw._obj[:] = [device.value] * 16
        return 0

    def cuDeviceGetUuid_v2(self, raw: Any, device: ctypes.c_int) -> int:
        raw._obj[:] = [device.value * 0xAB] * 16
        return 0


def test_the_identity_of_a_gpu() -> None:
    known = [gpu_identity(index, load=lambda _: _Driver()) for index in range(3)]
    assert known == ["0000:3b:00.0", "MIG-abababab-abab-abab-abab-abababababab", None]
    assert gpu_identity(0, load=lambda _: _Driver(result=3)) is None
    # A library without what is asked for, and none.
    assert gpu_identity(0, load=lambda _: SimpleNamespace()) is None
    assert gpu_identity(0, load=mock.Mock(side_effect=OSError)) is None


def test_two_ranks_on_one_gpu() -> None:
    hosts = [[0, 1], [2, 3]]
    with pytest.raises(StartError) as caught:
        check_gpu_sharing(NCCL, ["x", "y", "x", "x"], hosts)
    assert str(caught.value) == (
        "rank 2 and rank 3 use the same GPU of their host (x), but NCCL needs one for each. HINT: "
        "start one worker per GPU; or let your scheduler give each task its own (Slurm: "
        '--gpus-per-task=1); or share it, more slowly, by tfddl.init(collective="ring").'
    )
    # The same id on two hosts; ids that nobody knows; RING.
    check_gpu_sharing(NCCL, ["x", "y", "x", "y"], hosts)
    check_gpu_sharing(NCCL, [None, None, "x", None], hosts)
    check_gpu_sharing(RING, ["x"] * 4, hosts)


def test_hosts_with_and_without_gpus() -> None:
    with pytest.raises(DisagreementError) as caught:
        compare_transports([NCCL, NCCL, RING], ["a", "a", "b"])
    assert str(caught.value) == (
        "rank 0 on a sees a GPU and would use NCCL, but rank 2 on b would use RING; all ranks must "
        "use the same. HINT: if b has GPUs, see there what nvidia-smi and tfddl-doctor say, and "
        "CUDA_VISIBLE_DEVICES; to train without NCCL, give all ranks "
        'tfddl.init(collective="ring").'
    )
    with pytest.raises(DisagreementError, match=r"^rank 0 on a would.*HINT: if a has GPUs"):
        compare_transports([RING, NCCL], ["a", "b"])
    compare_transports([NCCL] * 3, ["a"] * 3)


def test_the_strategy_is_told_of_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What TensorFlow makes of it is asked of TensorFlow."""
    from tensorflow.python.distribute import collective_all_reduce_strategy as theirs

    see(monkeypatch, 4)
    made = mock.Mock()
    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", made)

    def choose(resolver: Any) -> Any:
        extended = theirs.CollectiveAllReduceExtended
        return extended._initialize_local_devices(None, resolver, "/job:worker/task:1")

    def strategy(cluster_resolver: Any, communication_options: Any) -> Any:
        assert communication_options.implementation.name == "NCCL"
        chosen, kind = choose(cluster_resolver)
        assert kind == "GPU"
        return SimpleNamespace(extended=SimpleNamespace(worker_devices=chosen))

    made.side_effect = strategy
    found = devices.make_strategy(Cluster(ON_ONE_HOST, 1), NCCL)
    assert found.extended.worker_devices == ("/job:worker/task:1/device:GPU:0",)


@pytest.mark.parametrize(
    ("found", "num_gpus", "message"),
    [
        (("/device:GPU:0",), 1, None),
        (("/device:CPU:0",), 0, None),
        (
            ("/job:worker/task:0/device:CPU:0",),
            1,
            "TensorFlow's strategy computes on /job:worker/task:0/device:CPU:0, but this worker "
            "has 1 visible GPU: one GPU was expected. HINT: tfddl.init() chooses the GPU; don't "
            "call tf.config.set_visible_devices as well.",
        ),
        (
            ("/device:GPU:0", "/device:GPU:1"),
            2,
            "/device:GPU:1, but this worker has 2 visible GPUs",
        ),
        (("/device:GPU:0",), 0, "but this worker has no visible GPU: one CPU was expected"),
    ],
)
def test_the_strategy_s_device(found: tuple[str, ...], num_gpus: int, message: str | None) -> None:
    if message is None:
        devices.check_strategy_devices(found, num_gpus=num_gpus)
        return
    with pytest.raises(StartError) as caught:
        devices.check_strategy_devices(found, num_gpus=num_gpus)
    assert message in str(caught.value)


def test_nccl_s_dtypes() -> None:
    """`kValidDataTypes` in TensorFlow's nccl_manager.cc; what isn't in it travels as another."""
    assert sorted(dtype.name for dtype in NCCL_DTYPES) == [
        "float16",
        "float32",
        "float64",
        "int32",
        "int64",
    ]
    assert NcclGroup.dtypes - NCCL_DTYPES == {tf.bfloat16}
    assert not NCCL_DTYPES - NcclGroup.dtypes


@pytest.mark.parametrize("kind", ["CollectiveReduceV2", "CollectiveGatherV2"])
def test_collectives_have_kernels_for_gpus(kind: str) -> None:
    for dtype in NCCL_DTYPES:
        kernel = placement.gpu_kernel(kind, {"T": dtype.as_datatype_enum})
        assert kernel is not None, dtype
        # The tensors themselves are the GPU's.
        assert sorted(kernel.host_memory_arg) == ["group_key", "group_size", "instance_key"]


@pytest.mark.parametrize(
    ("kind", "types", "in_host_memory"),
    [
        ("AssignAddVariableOp", {"dtype": tf.int64}, ["resource"]),
        ("AssignVariableOp", {"dtype": tf.int64}, ["resource"]),
        ("AssignVariableOp", {"dtype": tf.float32}, ["resource"]),
        ("VarIsInitializedOp", {}, ["is_initialized", "resource"]),
        ("Assert", {}, ["condition", "data"]),
        ("If", {}, ["cond"]),
        ("Bitcast", {}, []),
        # Why bits don't travel as int32: it is the host's.
        ("ZerosLike", {"T": tf.int32}, ["y"]),
        ("ZerosLike", {"T": tf.int64}, []),
        ("Pad", {"T": tf.int64, "Tpaddings": tf.int32}, None),
        ("ConcatV2", {"T": tf.int64, "Tidx": tf.int32}, ["axis"]),
    ],
)
def test_what_else_is_relied_on(
    kind: str, types: dict[str, tf.DType], in_host_memory: list[str] | None
) -> None:
    kernel = placement.gpu_kernel(kind, {n: d.as_datatype_enum for n, d in types.items()})
    found = None if kernel is None else sorted(kernel.host_memory_arg)
    assert found == in_host_memory


def test_choosing_with_one_gpu() -> None:
    assert choose_transport(None, num_gpus=1, local_size=4) is NCCL
    assert choose_transport(RING, num_gpus=1, local_size=4) is RING


MEETING: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a rank that can't start": (
        {"problem": "no GPU"},
        StartError,
        "^rank 1 can't start: no GPU$",
    ),
    "other collective": ({"collective": "nccl"}, DisagreementError, "collective='auto' on rank 0"),
    "other network": ({"between_hosts": "tcp"}, DisagreementError, "between_hosts='auto' on rank"),
    "a host without GPUs": ({"resolved": "ring", "gpu": None}, DisagreementError, "^rank 0 on a"),
    "the same GPU": ({"gpu": "0000:01:00.0"}, StartError, "^rank 0 and rank 1 use the same GPU"),
    # 3 workers on a host of 2 GPUs: not every launcher has said how many there are.
    "too few GPUs": ({"num_gpus": 2}, StartError, "^3 workers run on this host, but TensorFlow"),
}


@pytest.mark.parametrize(("changed", "kind", "text"), MEETING.values(), ids=MEETING)
def test_what_ranks_compare_when_they_meet(
    changed: dict[str, Any], kind: type[Exception], text: str
) -> None:
    """Rank 1 of three differs; all of them hear of it, since all compare the same facts."""
    cluster = Cluster(("a:1", "a:2", "a:3"), 2)
    facts = [
        {
            "collective": "auto",
            "between_hosts": "auto",
            "resolved": "nccl",
            "num_gpus": 4,
            "gpu": f"0000:0{1 + rank}:00.0",
            "problem": "",
        }
        for rank in range(3)
    ]
    startup_checks.compare(cluster, facts)
    with pytest.raises(kind, match=text):
        startup_checks.compare(cluster, [facts[0], facts[1] | changed, facts[2]])


def test_ring_may_share_a_gpu_when_ranks_meet() -> None:
    facts = [
        {
            "collective": "ring",
            "between_hosts": "auto",
            "resolved": "ring",
            "num_gpus": 1,
            "gpu": "0000:01:00.0",
            "problem": "",
        }
    ] * 2
    startup_checks.compare(Cluster(("a:1", "a:2"), 0), facts)
