"""How tensors travel between the workers: one interface, several ways.

Usage:
    transport = strategy_transport(rank=0, size=2, options=StrategyOptions(…))
    total = transport.all_reduce(flat_tensor, Reduction.SUM)
"""

from tfddl._src.comm.autotune import measured_pieces
from tfddl._src.comm.chunking import DEFAULT_PIECES, MOST_PIECES
from tfddl._src.comm.coordination_service import is_for_xla
from tfddl._src.comm.errors import RanksDisagreeError, RefusedError
from tfddl._src.comm.forked_process import ForkedTransport
from tfddl._src.comm.hierarchical_group import TwoLevelTransport
from tfddl._src.comm.lazy_variable import LateVariable, counter, made_outside
from tfddl._src.comm.native import Reduction
from tfddl._src.comm.native_group import WireTransport
from tfddl._src.comm.nccl_group import NCCL_DTYPES, NcclTransport, check_pieces, strategy_transport
from tfddl._src.comm.process_group import Between, Collective, Lengths, Transport
from tfddl._src.comm.single_process import AloneTransport
from tfddl._src.comm.stall_inspector import COMPARING, Roll
from tfddl._src.comm.tensorflow_group import StrategyOptions, StrategyTransport
from tfddl._src.comm.timed import TimedTransport
from tfddl._src.comm.traced import TracedTransport
from tfddl._src.comm.tracer import Event, Tracer

__all__ = [
    "COMPARING",
    "DEFAULT_PIECES",
    "MOST_PIECES",
    "AloneTransport",
    "Between",
    "Collective",
    "Event",
    "ForkedTransport",
    "LateVariable",
    "WireTransport",
    "Lengths",
    "NCCL_DTYPES",
    "NcclTransport",
    "RanksDisagreeError",
    "Reduction",
    "RefusedError",
    "Roll",
    "StrategyOptions",
    "StrategyTransport",
    "TimedTransport",
    "TracedTransport",
    "Tracer",
    "Transport",
    "TwoLevelTransport",
    "counter",
    "made_outside",
    "check_pieces",
    "is_for_xla",
    "measured_pieces",
    "strategy_transport",
]
