"""A worker that is measured: ``python -m tfddl.bench.worker --connect=ENTRANCE --way=WAY``.

`tfddl.bench.crew` starts it, and tells it what to do once it has come in at the entrance. It ends
when the connection is closed at the other end.
"""

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING

from tfddl._src.cluster import Cluster, detect, read_start_timeout
from tfddl._src.launcher.cores import share_of_cores, usable_cores
from tfddl.bench.entrance import connect
from tfddl.bench.line import Line
from tfddl.bench.machines import Machine
from tfddl.bench.orders import Call, Called, Done, End, Hello, Mode, Operation, Train
from tfddl.bench.usage import Usage
from tfddl.errors import LaunchError

if TYPE_CHECKING:
    from tfddl.bench.calls import Ready
    from tfddl.bench.contestants import Contestant


_CONNECT_S = 20.0
"""To come in, where the user says nothing (``--start-timeout``)."""


def main() -> None:
    """Does what is ordered until the end."""
    parser = argparse.ArgumentParser(description="One worker of tfddl-bench, which starts it.")
    parser.add_argument("--connect", required=True, help="the entrance that orders come from")
    parser.add_argument("--way", required=True, help="how to train")
    arguments = parser.parse_args()
    cluster = detect(os.environ)
    assert isinstance(cluster, Cluster)  # tfddl-bench has set TF_CONFIG
    try:
        channel = connect(
            arguments.connect,
            rank=cluster.rank,
            host=cluster.hosts.index(cluster.host),
            environment=os.environ,
            timeout_s=read_start_timeout(os.environ) or _CONNECT_S,
        )
    except LaunchError as error:
        sys.exit(f"tfddl.bench.worker: {error}")
    with channel:
        machine = Machine.here()
        line = Line(channel, machine)
        try:
            _obey(_start(arguments.way, cluster, machine, line), line)
        except EOFError:
            sys.exit("tfddl.bench.worker: nobody gives orders any more")
    os._exit(0)  # TensorFlow takes seconds to let go of what the kernel lets go of at once.


def _start(way: str, cluster: Cluster, machine: Machine, line: Line) -> "Contestant":
    num_cores = _keep_to_its_cores(cluster)
    began_s = time.perf_counter()
    from tfddl.bench import contestants

    imported_s = time.perf_counter()
    contestant = contestants.make_contestant(way, cluster, num_cores)
    line.answer(
        Hello(
            rank=cluster.rank,
            pid=os.getpid(),
            machine=machine,
            label=contestant.label,
            others=contestant.others,
            import_s=imported_s - began_s,
            init_s=time.perf_counter() - imported_s,
            kept_bytes=Usage.now().kept,
            versions=contestants.versions(),
        )
    )
    return contestant


def _keep_to_its_cores(cluster: Cluster) -> int:
    """Shares the cores out as `tfddlrun` does; before TensorFlow starts threads, which inherit it.

    Returns:
        How many are this worker's own; 1 where there are too few, and all workers share them.
    """
    cores = share_of_cores(
        usable_cores(), local_rank=cluster.local_rank, local_size=cluster.local_size
    )
    if cores:
        os.sched_setaffinity(0, cores)
    return max(1, len(cores))


def _obey(contestant: "Contestant", line: Line) -> None:
    """Carries out orders until the one to end."""
    ready: dict[tuple[Operation, Mode, int], Ready] = {}
    while True:
        order = line.take()
        if isinstance(order, Train):
            contestant.train(order.workload, line)
            contestant.clean_up()
            line.answer(Done())
        elif isinstance(order, Call):
            key = (order.operation, order.mode, order.num_bytes)
            if key not in ready:
                ready[key] = contestant.prepare(order)
            line.answer(_time_calls(ready[key], order.calls))
        else:
            assert isinstance(order, End)
            line.answer(Done())
            return


def _time_calls(ready: "Ready", calls: int) -> Called:
    ends = [time.perf_counter()]
    for _ in range(calls):
        ready.run()
        ends.append(time.perf_counter())
    call_s = tuple((b - a) / ready.number for a, b in zip(ends, ends[1:], strict=False))
    return Called(call_s, ready.number)


if __name__ == "__main__":
    main()
