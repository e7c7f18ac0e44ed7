"""How tensors travel between the workers: one interface, `ProcessGroup`, and its implementations.

Usage:
    group = make_tensorflow_group(rank, size, device, Collective.RING)
    [total] = group.all_reduce([tensor], ReduceOp.SUM)
"""

from tfddl._src.comm.coordination_service import is_for_xla
from tfddl._src.comm.errors import RanksDisagreeError, RefusedError
from tfddl._src.comm.forked_process import ForkedProcessGroup
from tfddl._src.comm.hierarchical_group import HierarchicalGroup
from tfddl._src.comm.instrumentation import Event, Instrumentation, InstrumentedGroup
from tfddl._src.comm.lazy_variable import LazyVariable, counter, create_outside_graph
from tfddl._src.comm.native import ReduceOp
from tfddl._src.comm.native_group import NativeGroup, connect_natively
from tfddl._src.comm.nccl_group import NCCL_DTYPES, NcclGroup, make_tensorflow_group
from tfddl._src.comm.process_group import (
    UNNAMED,
    Between,
    Collective,
    Invocation,
    Lengths,
    ProcessGroup,
    flatten,
    unflatten,
)
from tfddl._src.comm.single_process import SingleProcessGroup
from tfddl._src.comm.stall_inspector import COMPARING, StallInspector
from tfddl._src.comm.tensorflow_group import TensorFlowGroup

__all__ = [
    "COMPARING",
    "NCCL_DTYPES",
    "UNNAMED",
    "Between",
    "Collective",
    "Event",
    "ForkedProcessGroup",
    "HierarchicalGroup",
    "Instrumentation",
    "InstrumentedGroup",
    "Invocation",
    "LazyVariable",
    "Lengths",
    "NativeGroup",
    "NcclGroup",
    "ProcessGroup",
    "RanksDisagreeError",
    "ReduceOp",
    "RefusedError",
    "SingleProcessGroup",
    "StallInspector",
    "TensorFlowGroup",
    "connect_natively",
    "counter",
    "create_outside_graph",
    "flatten",
    "is_for_xla",
    "make_tensorflow_group",
    "unflatten",
]
