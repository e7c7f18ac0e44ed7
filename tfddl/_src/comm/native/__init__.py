"""Collectives between processes without TensorFlow: NumPy arrays, shared memory, TCP.

The workers of a host map each other's memory: each writes its numbers where the others can read
them, reduces a part of all workers' numbers, and reads the other parts' results in place. Short
messages on Unix sockets order this. A thread that waits for one uses no core, and a socket says at
once when the process at its other end has ended. Between hosts, TCP carries both.

Usage::

    with connect_local(PeerConfig(job="unique name of this job", rank=0, size=2)) as network:
        communicator = Communicator(network, ranks=(0, 1))
        signature = OpSignature("loss", "allreduce float32 (3,)")
        [total] = communicator.all_reduce([array], Reduction.SUM, signature)
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
from tfddl._src.comm.native.tcp_connector import Address, TcpConnector
from tfddl._src.comm.native.tcp_network import connect_hosts
from tfddl._src.comm.native.unix_network import connect_local

__all__ = [
    "Address",
    "ByteCounters",
    "Communicator",
    "Network",
    "OpSignature",
    "PeerConfig",
    "ReduceOp",
    "TcpConnector",
    "Timeouts",
    "connect_hosts",
    "connect_local",
    "describe_difference",
    "describe_exit",
    "describe_fork",
    "format_ranges",
    "format_ranks",
]
