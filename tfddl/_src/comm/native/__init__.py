"""How arrays get from worker to worker without TensorFlow: memory within a host, TCP between hosts.

The workers of a host see each other's memory, so that what they add up needn't go through a network
card, nor through a server: each writes its numbers into a segment that the others can read, adds up
a part of what all have written, and reads the sums of the others. Short messages over Unix sockets
say when something is there; waiting for one burns no core, and a socket says at once when the
process behind it has ended. Between hosts it is TCP for both.

Nothing here knows TensorFlow: arrays are NumPy's.

Usage::

    with connect(Seat(job="a name that only this job has", rank=0, size=2)) as network:
        wire = Wire(network, ranks=(0, 1))
        [total] = wire.all_reduce([array], Reduction.SUM, Call("loss", "allreduce float32 (3,)"))
"""

from tfddl._src.comm.native.backend import ByteCounters, Network
from tfddl._src.comm.native.communicator import Communicator
from tfddl._src.comm.native.diagnostics import (
    describe_difference,
    describe_exit,
    describe_fork,
    format_ranges,
    format_ranks,
)
from tfddl._src.comm.native.messages import OpSignature, PeerConfig, Timeouts
from tfddl._src.comm.native.reductions import ReduceOp
from tfddl._src.comm.native.tcp import connect_hosts
from tfddl._src.comm.native.tcp_rendezvous import Address, TcpRendezvous
from tfddl._src.comm.native.unix_rendezvous import connect_local

__all__ = [
    "OpSignature",
    "ByteCounters",
    "Address",
    "TcpRendezvous",
    "Network",
    "Timeouts",
    "ReduceOp",
    "PeerConfig",
    "Communicator",
    "connect",
    "connect_hosts",
    "describe_difference",
    "describe_exit",
    "describe_fork",
    "format_ranges",
    "format_ranks",
]
