"""How tensors travel between the workers: one interface, several ways.

Usage:
    transport = strategy_transport(rank=0, size=2, options=StrategyOptions(…))
    total = transport.all_reduce(flat_tensor, Reduction.SUM)
"""

from tfddl.transport.alone import AloneTransport
from tfddl.transport.base import Between, Collective, Lengths, Transport
from tfddl.transport.choosing import measured_pieces
from tfddl.transport.errors import RanksDisagreeError, RefusedError
from tfddl.transport.forked import ForkedTransport
from tfddl.transport.late_variable import LateVariable, counter, made_outside
from tfddl.transport.nccl import NCCL_DTYPES, NcclTransport, check_pieces, strategy_transport
from tfddl.transport.pieces import DEFAULT_PIECES, MOST_PIECES
from tfddl.transport.roll import COMPARING, Roll
from tfddl.transport.service import is_for_xla
from tfddl.transport.strategy import StrategyOptions, StrategyTransport
from tfddl.transport.timed import TimedTransport
from tfddl.transport.traced import TracedTransport
from tfddl.transport.tracer import Event, Tracer
from tfddl.transport.two_level import TwoLevelTransport
from tfddl.transport.wired import WireTransport
from tfddl.wire import Reduction

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
