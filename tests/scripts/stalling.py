"""Ranks that wait for each other in different calls, by Horovod's names; run by `tfddlrun`."""

import threading
import time
from typing import Any

import tensorflow as tf

import tfddl.horovod.tensorflow as hvd

hvd.init()


def wait(name: str, process_set: hvd.ProcessSet = hvd.global_process_set) -> None:
    try:
        hvd.allreduce(tf.ones([3]), name=name, process_set=process_set)
    except tf.errors.DeadlineExceededError as error:
        print(f"gave up {name}: {error}", flush=True)


CALLS: dict[int, list[tuple[Any, ...]]] = {
    0: [("a",), ("b",)],
    1: [("c",)],
    2: [("d", hvd.ProcessSet([1, 2]))],
}
threads = [threading.Thread(target=wait, args=args) for args in CALLS[hvd.rank()]]
for thread in threads:
    thread.start()
# Not thread.join(): as long as another thread could still call what is missing, no deadlock is
# certain, and the ranks are waited for until the time given.
while any(thread.is_alive() for thread in threads):
    time.sleep(0.1)
