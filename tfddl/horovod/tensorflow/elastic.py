"""`horovod.tensorflow.elastic`: training that goes on from the last commit when a worker fails.

See `tfddl.horovod.states` for what is kept, and what isn't.
"""

from tfddl.horovod.states import TensorFlowKerasState as TensorFlowKerasState
from tfddl.horovod.states import TensorFlowState as TensorFlowState
from tfddl.horovod.states import run as run
