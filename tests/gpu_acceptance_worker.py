"""The processes of `tests/gpu_acceptance.py`: those of a job, and those that only look."""

import argparse
import contextlib
import functools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import tfddl
from tests import placement
from tests.cases import simulated, training
from tests.cases.nccl import nccl
from tests.gpu_acceptance import SLEEP_S, WARN_S
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.nccl_group import NCCL_DTYPES, make_tensorflow_group
from tfddl._src.comm.process_group import Transport
from tfddl._src.runtime import current

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32")
LENGTHS = (1, 3, 1001, 65537)
MIB = 2**20
_KILL_AT = 5


def found(what: dict[str, Any]) -> None:
    sys.stdout.write(f"\nfound {json.dumps(what)}\n")


def devices() -> None:
    """What TensorFlow and the driver see."""
    gpus = tf.config.list_physical_devices("GPU")
    lines = [f"TensorFlow {tf.__version__} sees {len(gpus)} GPUs"]
    lines += [str(tf.config.experimental.get_device_details(gpu)) for gpu in gpus]
    if shutil.which("nvidia-smi"):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
        lines += done.stdout.splitlines()
    found({"gpus": len(gpus), "lines": lines})


def kernels() -> None:
    """Collectives for which this TensorFlow has no kernel for GPUs."""
    missing = [
        f"{kind} {dtype.name}"
        for kind in ("CollectiveReduceV2", "CollectiveGatherV2")
        for dtype in sorted(NCCL_DTYPES, key=str)
        if placement.gpu_kernel(kind, {"T": dtype.as_datatype_enum}) is None
    ]
    found({"missing": missing})


def alone() -> None:
    """NCCL with a single member; on a machine without a GPU, what stands for it there."""
    gpus = tf.config.list_physical_devices("GPU")
    device = f"/device:{'GPU' if gpus else 'CPU'}:0"
    group = make_tensorflow_group(0, 1, device, Transport.NCCL)
    wrong = []
    for length in LENGTHS:
        x = tf.range(length, dtype=tf.float32)
        results = {
            "sum": group.all_reduce([x], ReduceOp.SUM)[0],
            "gather": group.all_gather(x)[0],
            "broadcast": group.broadcast([x], 0)[0],
        }
        wrong += [name for name, y in results.items() if not (y.numpy() == x.numpy()).all()]
    found({"problem": ", ".join(wrong)})


# What rows of the table say: a problem, or "" and what was found.
Found = tuple[str, str]


def collectives() -> Found:
    """Every collective, dtype and length against NumPy, eagerly and in a graph."""
    rank, size, compared = tfddl.rank(), tfddl.size(), 0
    wrong: list[str] = []
    for dtype in (*DTYPES, "float64"):
        for length in LENGTHS:
            names, calls, expected = zip(*_calls(dtype, length, rank, size), strict=True)
            results = _in_all_ways(calls, in_graphs=length == LENGTHS[2])
            compared += len(results)
            for name, right, result in zip(2 * names, 2 * expected, results, strict=False):
                if result.dtype != dtype or not np.array_equal(result.numpy(), right):
                    wrong.append(f"{name} of {length} {dtype}")
    return ", ".join(wrong[:5]), f"{compared} results as NumPy's"


def _in_all_ways(calls: Sequence[Callable[[], tf.Tensor]], *, in_graphs: bool) -> list[tf.Tensor]:
    """The results, eagerly; and then in a graph, which takes a second to make."""

    def run() -> list[tf.Tensor]:
        return [call() for call in calls]

    return run() + (list(tf.function(run, autograph=False)()) if in_graphs else [])


def _value(dtype: str, length: int, rank: int) -> np.ndarray:
    """Small numbers, of which every dtype holds the sums exactly."""
    values = (np.arange(length) * 7 + rank * 3) % 3
    return (values % 2 if dtype == "bool" else values).astype(tf.as_dtype(dtype).as_numpy_dtype)


def _calls(
    dtype: str, length: int, rank: int, size: int
) -> list[tuple[str, Callable[[], tf.Tensor], np.ndarray]]:
    """Operations of this rank by name, and what NumPy says that it gets."""

    def values(lengths: Sequence[int]) -> list[np.ndarray]:
        return [_value(dtype, n, r) for r, n in enumerate(lengths)]

    alike = values([length] * size)
    uneven = values([length + r for r in range(size)])
    splits = [[(length + i + j) % 5 for j in range(size)] for i in range(size)]
    sent = values([sum(row) for row in splits])
    x, y, z = (tf.constant(v[rank]) for v in (alike, uneven, sent))
    found: dict[str, tuple[Callable[[], tf.Tensor], Any]] = {
        "max": (lambda: tfddl.allreduce(x, "max"), simulated.allreduce(alike, "max")),
        "allgather": (lambda: tfddl.allgather(y), simulated.allgather(uneven)),
        "broadcast": (lambda: tfddl.broadcast(x, size - 1), simulated.broadcast(alike, size - 1)),
        "alltoall": (
            lambda: tfddl.alltoall(z, splits[rank])[0],
            simulated.alltoall(sent, splits),
        ),
    }
    if dtype != "bool":
        found["sum"] = (lambda: tfddl.allreduce(x, "sum"), simulated.allreduce(alike, "sum"))
        found["reducescatter"] = (
            lambda: tfddl.reducescatter(x, "sum"),
            simulated.reducescatter(alike, "sum"),
        )
    return [(name, call, expected[rank]) for name, (call, expected) in found.items()]


def where() -> Found:
    """Whether gradients travel from the GPU, by what was asked for."""
    group, strategy = current().process_group, tfddl.strategy()
    device = strategy.extended.worker_devices[0]
    kind = tf.DeviceSpec.from_string(device).device_type
    expected = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    problem = "" if kind == expected else f"the strategy computes on {device}"
    return problem, f"{group.name}, the strategy computes on {device}"


def bandwidth(sizes_mib: Sequence[int]) -> dict[str, Found]:
    """Of sums, each the slowest rank's."""
    rows = {}
    for size_mib in sizes_mib:
        data = tf.ones([size_mib * MIB // 4])
        # Of the result one number is read: that waits for it.
        total = tf.function(lambda x: tfddl.allreduce(x, "sum")[0], autograph=False)
        best_s = _best_seconds(functools.partial(_read, total, data), rounds=5)
        slowest_s = float(tfddl.allreduce(tf.constant(best_s, tf.float64), "max"))
        moved = size_mib * MIB * 2 * (tfddl.size() - 1) / tfddl.size()
        rows[f"sum of {size_mib} MiB"] = (
            "",
            f"{slowest_s * 1e3:.2f} ms, {moved / slowest_s / 1e9:.2f} GB/s per rank",
        )
    return rows


def _read(function: Callable[[tf.Tensor], tf.Tensor], data: tf.Tensor) -> float:
    return float(function(data))


def _best_seconds(call: Callable[[], object], *, rounds: int) -> float:
    call()
    best_s = float("inf")
    for _ in range(rounds):
        begin_s = time.perf_counter()
        call()
        best_s = min(best_s, time.perf_counter() - begin_s)
    return best_s


def overlap(units: int, steps: int) -> Found:
    """A step with the exchange, without it, and the exchange alone."""
    import keras

    model = keras.Sequential(
        [keras.Input([units]), *(keras.layers.Dense(units, activation="relu") for _ in range(8))]
    )
    x = tf.random.stateless_normal([512, units], seed=(1, tfddl.rank()))
    variables = [v.value for v in model.trainable_variables]

    def gradients(averaged: bool) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True)))
        ours = tfddl.DistributedGradientTape(tape) if averaged else tape
        return list(ours.gradient(loss, variables))

    def step(averaged: bool) -> tf.Tensor:
        found = gradients(averaged)
        for variable, gradient in zip(variables, found, strict=True):
            variable.assign_sub(1e-6 * gradient)
        return found[0][0, 0]

    given = gradients(averaged=False)
    kinds: dict[str, Callable[[], tf.Tensor]] = {
        "with": lambda: step(True),
        "without": lambda: step(False),
        "alone": lambda: tfddl.grouped_allreduce(given)[0][0, 0],
    }
    took_s = {}
    for name, kind in kinds.items():
        made = tf.function(kind, autograph=False)

        def several(made: Any = made) -> None:
            for _ in range(steps):
                last = made()
            float(last)  # Waits for it.

        tfddl.barrier()
        took_s[name] = _best_seconds(several, rounds=3) / steps
    hidden = 1 - (took_s["with"] - took_s["without"]) / took_s["alone"]
    shown = ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in took_s.items())
    return "", f"{shown}; {100 * min(max(hidden, 0.0), 1.0):.0f} % of the exchange is hidden"


def specs(size: int) -> dict[str, dict[str, Any]]:
    """What is trained, by each API: uneven batches, in which no rank is without an example."""
    problem = {"n": 24 * size - 1, "loss": "scce", "optimizer": "adam", "batch_size": 4}
    problem |= {"epochs": 4, "seed": 1}
    return {
        "DistributedOptimizer": problem,
        "strategy scope": {**problem, "under_scope": True},
    }


def everything(directory: Path, *, rehearse: bool) -> None:
    """All that the first job shows."""
    rows: dict[str, Found] = {"where gradients travel": where()}
    rows["collectives, dtypes, odd lengths"] = collectives()
    trained = {api: training.train(spec) for api, spec in specs(tfddl.size()).items()}
    by_nccl = current().process_group.name == "NCCL" and not rehearse
    rows |= bandwidth((1, 16, 64, 256) if by_nccl else (1, 16))
    rows["step time"] = overlap(*((2048, 20) if by_nccl else (128, 5)))
    written = {"rows": rows, "trained": trained, "specs": specs(tfddl.size())}
    (directory / f"{tfddl.rank()}.pickle").write_bytes(pickle.dumps(written))


def last_rank(action: Callable[[], object]) -> None:
    """Steps in which the last rank does something else once, after a while."""
    step = tf.function(lambda: tfddl.allreduce(tf.ones([1001]), "sum"), autograph=False)
    for number in range(2 * _KILL_AT):
        step()
        if number == _KILL_AT and tfddl.rank() == tfddl.size() - 1:
            action()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def as_it_is() -> Iterator[None]:
    """No rehearsal."""
    yield


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--collective")
    parser.add_argument("--rehearse", action="store_true")
    options = parser.parse_args(arguments)
    looks = {"devices": devices, "kernels": kernels, "alone": alone}
    if options.case in looks:
        looks[options.case]()
        return
    warn_s = WARN_S if options.case == "sleep" else 60.0
    tfddl.init(collective=options.collective, stall_warning_s=warn_s, timeout_s=120.0)
    if options.case == "all":
        branch: AbstractContextManager[Any] = nccl() if options.rehearse else as_it_is()
        with branch:
            everything(options.out, rehearse=options.rehearse)
    elif options.case == "sleep":
        last_rank(lambda: time.sleep(SLEEP_S))
    else:
        last_rank(kill)
    tfddl.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
