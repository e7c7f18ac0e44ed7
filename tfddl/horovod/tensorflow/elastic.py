"""`horovod.tensorflow.elastic`: training that goes on from the last commit when a worker fails.

See `tfddl._src.horovod.elastic_states` for what is kept, and what isn't.
"""

from tfddl._src.horovod.elastic_states import TensorFlowKerasState as TensorFlowKerasState
from tfddl._src.horovod.elastic_states import TensorFlowState as TensorFlowState
from tfddl._src.horovod.elastic_states import run as run
