"""What an allreduce costs each rank, in groups of up to many processes without TensorFlow.

Where there are more processes than cores, the time of an operation says little; the CPU time that
it costs each rank is what has to grow slowly with their number.
"""

import contextlib
import multiprocessing
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from tfddl._src.comm import native
from tfddl._src.cpu import num_affinity_cores
from tfddl.bench.config import FLOAT_BYTES, Config
from tfddl.bench.cost_model import modelled
from tfddl.bench.interleave import count_rounds, repetitions
from tfddl.bench.machines import Memory
from tfddl.bench.results import Row, ratios
from tfddl.errors import LaunchError, TfddlError

BACKENDS = "shared memory", "TCP"
_TIMEOUT_S = 600.0
_PART_OF_ROUND = 0.1

Sample = dict[str, float]
"""What was measured of one size: CPU time and time of an operation; time to connect; and what a
rank has then: connections, descriptors, threads and memory."""


def measure_scaling(config: Config, say: Callable[[str], None]) -> list[Row]:
    """Measures groups of all sizes, in turns; with what a model makes of that."""
    found: dict[tuple[str, int], dict[int, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    seconds = config.round_seconds * _PART_OF_ROUND
    for _ in count_rounds(config.rounds, "scaling", say):
        for by in BACKENDS:
            for size in config.workers:
                say(f"scaling, {by}, {size} processes")
                of_ranks = run_group(size, by, config.sizes, seconds=seconds)
                for number, num_bytes in enumerate(config.sizes):
                    of_group = _of_group([samples[number] for samples in of_ranks])
                    found[by, num_bytes][size].append(of_group)
    rows = []
    for (by, num_bytes), groups in found.items():
        base_ms = [sample["cpu_ms"] for sample in groups[min(config.workers)]]
        for size, samples in groups.items():
            values = {name: statistics.median(s[name] for s in samples) for name in samples[0]}
            cpu_ms = [sample["cpu_ms"] for sample in samples]
            values["ratio"] = statistics.median(ratios(cpu_ms, base_ms))
            rows.append(Row("scaling", {"by": by, "bytes": num_bytes, "workers": size}, values))
    return modelled(rows)


def _of_group(samples: Sequence[Sample]) -> Sample:
    """The CPU time of a rank in the mean, times of the slowest, and the most that any has."""
    slowest = {name: max(sample[name] for sample in samples) for name in samples[0]}
    return {**slowest, "cpu_ms": statistics.fmean(sample["cpu_ms"] for sample in samples)}


def run_group(size: int, by: str, sizes: Sequence[int], *, seconds: float) -> list[list[Sample]]:
    """Runs so many processes; returns of each rank a sample for each of the sizes, in bytes.

    Raises:
        LaunchError: One of them failed, or took more than ten minutes.
    """
    # A server that has imported NumPy forks them: to start as many Pythons would take longer.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    job = f"tfddl-bench {os.getpid()} {time.monotonic_ns()}"
    with contextlib.ExitStack() as stack:
        connections = []
        for rank in range(size):
            ours, theirs = context.Pipe()
            config = native.PeerConfig(
                job=job, rank=rank, size=size, spins=size <= num_affinity_cores()
            )
            arguments = theirs, config, by, tuple(sizes), seconds
            process = context.Process(target=_run_rank, args=arguments, daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(process.kill)
            connections.append(stack.enter_context(ours))
        ports = [receive(connection, rank) for rank, connection in enumerate(connections)]
        for connection in connections:
            connection.send(ports)
        return [receive(connection, rank) for rank, connection in enumerate(connections)]


def receive(connection: Connection, rank: int) -> Any:
    """What a process sends.

    Raises:
        LaunchError: It failed, or is silent for ten minutes.
    """
    try:
        found = connection.recv() if connection.poll(_TIMEOUT_S) else f"silent for {_TIMEOUT_S:g} s"
    except (EOFError, ConnectionError):
        found = "it has ended. HINT: what it wrote to stderr is above"
    if isinstance(found, str):
        raise LaunchError(f"rank {rank} of a group without TensorFlow failed: {found}")
    return found


def _run_rank(
    parent: Connection, config: native.PeerConfig, by: str, sizes: Sequence[int], seconds: float
) -> None:
    """The process of a rank: connects, measures, reports."""
    rendezvous = native.TcpConnector(config.rank)
    parent.send(rendezvous.port)
    addresses = [native.Address("localhost", port) for port in parent.recv()]
    began_s = time.perf_counter()
    if by == "TCP":
        rendezvous.start(addresses, config.job.encode())
        network = native.connect_hosts(config, rendezvous, range(config.size))
    else:
        rendezvous.close()
        network = native.connect_local(config)
    with network:
        group = native.Communicator(network, range(config.size))
        connect_s = time.perf_counter() - began_s
        try:
            samples = []
            for num_bytes in sizes:
                sample = measure_allreduce(group, num_bytes, seconds)
                samples.append({**sample, "connect_s": connect_s, **_held(group)})
            parent.send(samples)
        except TfddlError as error:
            parent.send(str(error))
        parent.poll(_TIMEOUT_S)  # Killed when all have reported: nobody is missed before.


def _held(group: native.Communicator) -> Sample:
    """What this process has of the system."""
    return {
        "connections": float(group.num_connections),
        "descriptors": float(len(os.listdir("/proc/self/fd"))),
        "threads": float(len(os.listdir("/proc/self/task"))),
        "memory_mb": Memory.now().kept / 1e6,
    }


def measure_allreduce(group: native.Communicator, num_bytes: int, seconds: float) -> Sample:
    """Times sums of float32. All ranks must call it together."""
    ones = np.ones(num_bytes // FLOAT_BYTES, np.float32)

    def reduce(array: np.ndarray, reduction: native.ReduceOp) -> np.ndarray:
        signature = native.OpSignature("", f"{reduction} float32 ({len(array)},)")
        return group.all_reduce([array], reduction, signature)[0]

    def timed(number: int) -> Sample:
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        for _ in range(number):
            total = reduce(ones, native.ReduceOp.SUM)
        cpu_s, call_s = time.process_time() - began_cpu_s, time.perf_counter() - began_s
        assert total[0] == total[-1] == group.size
        return {"cpu_ms": 1e3 * cpu_s / number, "ms": 1e3 * call_s / number}

    # The first ones make connections, and buffers: two, as a result is kept during the next sum.
    timed(2)
    own_ms = np.array([timed(1)["ms"]], np.float32)
    slowest_ms = float(reduce(own_ms, native.ReduceOp.MAX)[0])
    return timed(repetitions(seconds, slowest_ms / 1e3))
