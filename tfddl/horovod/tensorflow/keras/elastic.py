"""`horovod.tensorflow.keras.elastic`: the same as `tfddl.horovod.keras.elastic`."""

from tfddl.horovod.keras.elastic import CommitStateCallback as CommitStateCallback
from tfddl.horovod.keras.elastic import KerasState as KerasState
from tfddl.horovod.keras.elastic import UpdateBatchStateCallback as UpdateBatchStateCallback
from tfddl.horovod.keras.elastic import UpdateEpochStateCallback as UpdateEpochStateCallback
from tfddl.horovod.keras.elastic import run as run
