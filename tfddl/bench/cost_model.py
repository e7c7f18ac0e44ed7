"""A model of what an allreduce costs, fitted to groups on this machine; what it says of more ranks.

An operation costs a rank a fixed time, α for each message, β for each byte that it sends and
receives, and γ for each byte that it reduces. The counts are those of tfddl's own exchanges; the
times are fitted to what was measured.

References:
    "Optimization of Collective Communication Operations in MPICH", Thakur, Rabenseifner, Gropp,
    2005, https://doi.org/10.1177/1094342005051521: the model.
    "Horovod: fast and easy distributed deep learning in TensorFlow", Sergeev, Del Balso, 2018,
    https://arxiv.org/abs/1802.05799: hierarchical allreduce.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from tfddl._src.comm.native.messages import MAX_PAYLOAD_BYTES
from tfddl._src.comm.native.posted_arrays import max_posted_bytes
from tfddl._src.comm.native.shm_backend import CHUNK_BYTES
from tfddl._src.comm.native.tree import MAX_DIRECT_SIZE
from tfddl.bench.results import Labels, Row

SIZES = 4096, 16 * 2**20
RANKS = 256, 1024, 4096
GBIT_PER_S = 10, 25, 100
RANKS_PER_HOST = 8
LATENCY_MS = 0.025
"""From one host to another, one way, beside what the processors do. It isn't measured."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """In ms.

    Attributes:
        fixed: of an operation.
        message: of a message, sent and received.
        byte: of a byte, sent and received.
        reduced: of a byte that is reduced.
    """

    fixed: float
    message: float
    byte: float
    reduced: float

    def of(self, counts: np.ndarray) -> float:
        """The CPU time of an operation of such `counts`."""
        return float(np.dot(dataclasses.astuple(self), counts))


def counts(by: str, size: int, num_bytes: int) -> np.ndarray:
    """Of an allreduce, of a rank in the mean: 1, messages, bytes sent, bytes reduced."""
    others = (size - 1) / size
    is_direct = size <= MAX_DIRECT_SIZE
    exchange = float(size - 1) if is_direct else 2 * others
    if num_bytes <= MAX_PAYLOAD_BYTES:
        reduced = size - 1 if is_direct else others
        return np.array([1, exchange, exchange * num_bytes, reduced * num_bytes])
    if by == "shared memory" and num_bytes <= max_posted_bytes(size):
        return np.array([1, exchange, 0, (size - 1) * num_bytes])  # Each reads those of all.
    first = exchange + others  # And the number of the operation.
    if by == "TCP":
        return np.array([1, first, 2 * others * num_bytes, others * num_bytes])
    barriers = math.ceil(num_bytes / CHUNK_BYTES) + 1
    return np.array([1, first + barriers * exchange, 0, num_bytes])


def fit_costs(rows: Sequence[Row]) -> Costs:
    """The costs that fit rows of one kind of group best: relative errors count."""
    given = [_counts_of(row) for row in rows]
    measured = np.array([row.values["cpu_ms"] for row in rows])
    equations = np.array(given) / measured[:, None]
    scale = np.abs(equations).max(axis=0)
    scale[scale == 0] = 1.0
    used = [column for column in range(4) if equations[:, column].any()]
    found = np.zeros(4)
    while used:
        part, *_ = np.linalg.lstsq((equations / scale)[:, used], np.ones(len(rows)), rcond=None)
        if part.min() >= 0:
            found[used] = part
            break
        del used[int(part.argmin())]  # No cost is negative.
    return Costs(*(found / scale).tolist())


def modelled(rows: Sequence[Row]) -> list[Row]:
    """Adds to rows of `scaling` what the model makes of them; then rows of its costs, and of more.

    Args:
        rows: of the table `scaling`.
    """
    found, costs = [], []
    for by in dict.fromkeys(str(row.labels["by"]) for row in rows):
        own = [row for row in rows if row.labels["by"] == by]
        fitted = fit_costs(own)
        for row in own:
            model_ms = fitted.of(_counts_of(row))
            values = {**row.values, "model_ms": model_ms}
            found.append(dataclasses.replace(row, values=values))
        values = {
            "fixed_us": 1e3 * fitted.fixed,
            "message_us": 1e3 * fitted.message,
            "sent_us_per_mb": 1e9 * fitted.byte,
            "reduced_us_per_mb": 1e9 * fitted.reduced,
        }
        costs.append(Row("costs", {"by": by}, values))
        if by == "TCP":
            costs += _predictions(fitted)
    return found + costs


def predict_ms(schedule: str, ranks: int, gbit_per_s: float, num_bytes: int, costs: Costs) -> float:
    """The time of an allreduce over hosts of eight ranks each, one connection to the network each.

    Args:
        schedule: one of `SCHEDULES`.
        ranks: a multiple of eight.
        gbit_per_s: of each host's connection.
        num_bytes: of the tensor.
        costs: of processors, by TCP.
    """
    hosts = ranks // RANKS_PER_HOST
    hop = LATENCY_MS + costs.message
    byte = max(costs.byte, 8e-6 / gbit_per_s)
    rounds, within = math.log2(hosts), math.log2(RANKS_PER_HOST)
    reduced = num_bytes * costs.reduced
    if schedule == "ring":
        moved = 2 * (ranks - 1) / ranks * num_bytes
        return costs.fixed + 2 * (ranks - 1) * hop + moved * byte + reduced
    if schedule == "tree":
        steps = math.log2(ranks)
        return costs.fixed + 2 * steps * (hop + num_bytes * byte) + steps * reduced
    # What is within a host: a reduction before and a copy after, each of all bytes, and barriers.
    local = costs.fixed + 4 * within * costs.message + 2 * reduced
    if schedule == "Horovod's hierarchical":
        # Each rank of a host reduces its part over the hosts, in a ring: they share the connection.
        part = num_bytes / RANKS_PER_HOST
        shared = max(costs.byte, RANKS_PER_HOST * 8e-6 / gbit_per_s)
        moved = 2 * (hosts - 1) / hosts * part
        return local + 2 * (hosts - 1) * hop + moved * shared + part * costs.reduced
    if num_bytes <= MAX_PAYLOAD_BYTES:
        # Up the tree with four children each, and down.
        steps = 2 * math.ceil(math.log(hosts, 4))
        return local + steps * (hop + num_bytes * byte) + rounds * reduced
    # Recursive halving and doubling, by one rank of each host, after the first messages.
    moved = 2 * (hosts - 1) / hosts * num_bytes
    return local + 4 * rounds * hop + moved * byte + reduced


SCHEDULES = "tfddl", "ring", "tree", "Horovod's hierarchical"


def _predictions(costs: Costs) -> Iterator[Row]:
    for num_bytes in SIZES:
        for gbit_per_s in GBIT_PER_S:
            for ranks in RANKS:
                values = {
                    f"{schedule.split()[-1]}_ms": predict_ms(
                        schedule, ranks, gbit_per_s, num_bytes, costs
                    )
                    for schedule in SCHEDULES
                }
                labels: Labels = {"bytes": num_bytes, "gbit_per_s": gbit_per_s, "workers": ranks}
                yield Row("prediction", labels, values)


def _counts_of(row: Row) -> np.ndarray:
    labels = row.labels
    return counts(str(labels["by"]), int(labels["workers"]), int(labels["bytes"]))
