"""`horovod.tensorflow.mpi_ops`: the operations, which `horovod.tensorflow` has, too."""

import importlib

from tfddl._src.horovod.common_basics import HorovodBasics as _HorovodBasics
from tfddl._src.horovod.private_mpi_ops import allreduce as _allreduce
from tfddl._src.horovod.private_mpi_ops import grouped_allreduce as _grouped_allreduce
from tfddl._src.horovod.private_mpi_ops import reducescatter as _reducescatter
from tfddl.horovod.tensorflow.util import _executing_eagerly

_basics = _HorovodBasics()

__all__ = ["_allreduce", "_basics", "_executing_eagerly", "_grouped_allreduce", "_reducescatter"]


def __getattr__(name: str) -> object:
    # By name: that package imports this module.
    found: object = getattr(importlib.import_module("tfddl.horovod.tensorflow"), name)
    return found
