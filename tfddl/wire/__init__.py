"""Shared memory and sockets between the workers of one host.

The workers of a host see each other's memory, so that what they add up needn't go through a network
card, nor through a server: each writes its numbers into a segment that the others can read, adds up
a part of what all have written, and reads the sums of the others. Short messages over Unix sockets
say when something is there; waiting for one burns no core, and a socket says at once when the
process behind it has ended.

Nothing here knows TensorFlow: arrays are NumPy's.

Usage::

    with connect(Seat(job="a name that only this job has", rank=0, size=2)) as mesh:
        wire = Wire(mesh, ranks=(0, 1))
        [total] = wire.all_reduce([array], Reduction.SUM, Call("loss", "allreduce float32 (3,)"))
"""

from tfddl.wire.arithmetic import Reduction
from tfddl.wire.exchange import Wire
from tfddl.wire.meeting import connect
from tfddl.wire.mesh import Call, Mesh, Patience, Seat
from tfddl.wire.telling import describe_difference, rank_names

__all__ = [
    "Call",
    "Mesh",
    "Patience",
    "Reduction",
    "Seat",
    "Wire",
    "connect",
    "describe_difference",
    "rank_names",
]
