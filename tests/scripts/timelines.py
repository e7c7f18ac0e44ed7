"""Timelines that some ranks begin and end, and one that nobody ends."""

import sys
from pathlib import Path

import tensorflow as tf

import tfddl.horovod.tensorflow as hvd

hvd.init()
rank, folder = hvd.rank(), Path(sys.argv[1])


def traced(name: str, ranks: list[int], collectives: int) -> None:
    if rank in ranks:
        hvd.start_timeline(folder / f"{name}.json")
    for number in range(collectives):
        hvd.allreduce(tf.ones([3]), name=f"{name} {number}")
    hvd.stop_timeline()


traced("root alone", [0], 2)
traced("without root", [1, 2], 1)
for again in range(3):
    traced(f"two {again}", [0, 2], 1)
traced("all", [0, 1, 2], 2)
hvd.start_timeline(folder / "unended.json")
hvd.allreduce(tf.ones([3]), name="unended")
hvd.shutdown()
