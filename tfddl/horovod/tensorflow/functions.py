"""`horovod.tensorflow.functions`: broadcasts variables, broadcasts and gathers objects."""

from tfddl._src.horovod.mpi_ops import allgather_object as allgather_object
from tfddl._src.horovod.mpi_ops import broadcast_object as broadcast_object
from tfddl._src.horovod.mpi_ops import broadcast_object_fn as broadcast_object_fn
from tfddl._src.horovod.mpi_ops import broadcast_variables as broadcast_variables
