"""Cases of `tests/test_nccl.py`, run by every worker: the NCCL branch, which on CPUs goes by RING.

TensorFlow takes NCCL only on GPUs (`AssignCollectiveType` in collective_param_resolver_local.cc);
elsewhere the same ops go by RING, whatever the hint says.
"""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import tensorflow as tf

import tfddl
from tests.cases import batch_slices, collective_tables, collectives
from tfddl._src.collectives.negotiation import _AGREED
from tfddl._src.comm.errors import StalledOpError
from tfddl._src.comm.instrumentation import Instrumentation
from tfddl._src.comm.instrumented_group import InstrumentedGroup
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.nccl_group import NcclGroup, make_tensorflow_group
from tfddl._src.comm.process_group import Transport
from tfddl._src.comm.stall_inspector import StallInspector
from tfddl._src.runtime import current

_MADE: dict[str, NcclGroup] = {}


def _group() -> NcclGroup:
    """One per process: two would take each other's messages."""
    if "nccl" not in _MADE:
        device = tfddl.strategy().extended.worker_devices[0]
        made = make_tensorflow_group(tfddl.rank(), tfddl.size(), device, Transport.NCCL)
        assert isinstance(made, NcclGroup)
        _MADE["nccl"] = made
    return _MADE["nccl"]


@contextlib.contextmanager
def nccl() -> Iterator[NcclGroup]:
    """The NCCL branch carries what this process's operations move.

    TensorFlow's own all-to-all gives back its input, as NCCL's does with one GPU per process.
    """
    runtime = current()
    made, before = _group(), (runtime.process_group, runtime.instrumentation)
    assert runtime.job is not None
    recorded = Instrumentation(tfddl.size())
    recorded.keep_on(made.device, stays_there=made.stays_on_device)
    inspector = StallInspector(
        runtime.job.rendezvous, runtime.options.timeouts, recorded, made.abort
    )
    runtime.process_group, runtime.instrumentation = InstrumentedGroup(made, recorded), recorded
    agreed = _AGREED.current().copy()
    _AGREED.current().clear()
    copying = mock.patch.object(
        tf.raw_ops, "CollectiveAllToAllV2", lambda input, **_: tf.identity(input)
    )
    try:
        with copying:
            yield made
    finally:
        inspector.close()
        runtime.process_group, runtime.instrumentation = before
        _AGREED.current().clear()
        _AGREED.current().update(agreed)


def table(name: str, **arguments: Any) -> Any:
    """A case of `collective_tables`."""
    with nccl():
        return getattr(collective_tables, name)(**arguments)


def others() -> dict[str, Any]:
    """What else has to be as it is by RING."""
    with nccl():
        found = {
            "name": current().process_group.name,
            "bits": collectives.exact_bits()[0].hex(),
            "order": collectives.order(),
            "loops": collectives.loops(steps=3),
            "cut": batch_slices.others(),
            "known and unknown": batch_slices.known_and_unknown(),
            "measured": current().instrumentation.measure(True),
            "narrow": _narrow(),
            "odd broadcasts": _odd_broadcasts(),
        }
        begun, ended = current().instrumentation.counts()
        found["open"] = begun - ended
        return found


def _narrow() -> list[float]:
    """bfloat16 as it is: 256 and ones, which bfloat16 alone couldn't add."""
    mine = tf.constant([256.0 if tfddl.rank() == 0 else 1.0] * 3, tf.bfloat16)
    group = current().process_group
    [total] = group.all_reduce([mine], ReduceOp.SUM)
    assert total.dtype == tf.bfloat16
    rows = group.all_gather(mine)
    assert rows.dtype == tf.bfloat16
    return [float(x) for x in [total[0], rows[1, 0]]]


def _odd_broadcasts() -> list[str]:
    """Of lengths that don't fill numbers of 8 bytes; what is wrong."""
    wrong = []
    for dtype in (tf.float16, tf.bfloat16, tf.float32, tf.float64, tf.int32, tf.int64):
        for length in (0, 1, 2, 3, 4, 5, 7, 1001):
            for known in (True, False):
                spec = tf.TensorSpec([length if known else None], dtype)
                told = tf.function(lambda x: tfddl.broadcast(x, 1), input_signature=[spec])
                found = told(tf.cast(tf.range(length) + 10 * tfddl.rank(), dtype))
                if not (found.numpy() == tf.cast(tf.range(length) + 10, dtype).numpy()).all():
                    wrong.append(f"{dtype.name} {length} {known}")
    return wrong


def cut_short() -> dict[str, str]:
    """An operation that was under way when operations were ended, and arrives all the same.

    RING would end it with an error; NCCL says that all is well.
    """
    found = {}
    with nccl() as made:
        x = tf.ones([3])
        graph = tf.function(lambda: made.all_reduce([x], ReduceOp.SUM)[0])
        graph()
        tfddl.barrier()
        if tfddl.rank() == 0:
            threading.Timer(0.5, made._shared.guard.abort, ("it took too long",)).start()
        else:
            time.sleep(1.5)
        try:
            found["graph"] = str(graph())
        except tf.errors.InvalidArgumentError as error:
            found["graph"] = error.message
        try:
            found["eager"] = str(made.all_reduce([x], ReduceOp.SUM)[0])
        except StalledOpError as error:
            found["eager"] = str(error)
    return found
