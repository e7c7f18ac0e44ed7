"""Ranks that wait for each other in different calls, by Horovod's names; run by `tfddlrun`."""

import threading

import tensorflow as tf

import tfddl.horovod.tensorflow as hvd

hvd.init()


def wait(name: str, process_set: hvd.ProcessSet = hvd.global_process_set) -> None:
    try:
        hvd.allreduce(tf.ones([3]), name=name, process_set=process_set)
    except tf.errors.DeadlineExceededError as error:
        print(f"gave up {name}: {error}", flush=True)


if hvd.rank() == 0:
    other = threading.Thread(target=wait, args=("a",))
    other.start()
    wait("b")
    other.join()
elif hvd.rank() == 1:
    wait("c")
else:
    wait("d", hvd.ProcessSet([1, 2]))
