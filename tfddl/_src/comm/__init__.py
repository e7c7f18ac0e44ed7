"""How tensors travel between the workers: one interface, several ways.

Usage:
    transport = strategy_transport(rank=0, size=2, options=StrategyOptions(…))
    total = transport.all_reduce(flat_tensor, Reduction.SUM)
"""

from tfddl._src.comm.autotune import measured_pieces
from tfddl._src.comm.chunking import DEFAULT_PIECES, MOST_PIECES
from tfddl._src.comm.coordination_service import is_for_xla
from tfddl._src.comm.errors import RanksDisagreeError, RefusedError
from tfddl._src.comm.forked_process import ForkedProcessGroup
from tfddl._src.comm.hierarchical_group import HierarchicalGroup
from tfddl._src.comm.lazy_variable import LazyVariable, counter, create_outside_graph
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.native_group import NativeGroup
from tfddl._src.comm.nccl_group import NCCL_DTYPES, NcclGroup, check_pieces, make_tensorflow_group
from tfddl._src.comm.process_group import Between, Collective, Lengths, ProcessGroup
from tfddl._src.comm.single_process import SingleProcessGroup
from tfddl._src.comm.stall_inspector import COMPARING, StallInspector
from tfddl._src.comm.tensorflow_group import TensorFlowGroup, TensorFlowGroupOptions
from tfddl._src.comm.timed import TimedTransport
from tfddl._src.comm.traced import TracedTransport
from tfddl._src.comm.tracer import Event, Tracer

__all__ = [
    "COMPARING",
    "DEFAULT_PIECES",
    "MOST_PIECES",
    "SingleProcessGroup",
    "Between",
    "Collective",
    "Event",
    "ForkedProcessGroup",
    "LazyVariable",
    "NativeGroup",
    "Lengths",
    "NCCL_DTYPES",
    "NcclGroup",
    "RanksDisagreeError",
    "ReduceOp",
    "RefusedError",
    "StallInspector",
    "TensorFlowGroupOptions",
    "TensorFlowGroup",
    "TimedTransport",
    "TracedTransport",
    "Tracer",
    "ProcessGroup",
    "HierarchicalGroup",
    "counter",
    "create_outside_graph",
    "check_pieces",
    "is_for_xla",
    "measured_pieces",
    "make_tensorflow_group",
]
