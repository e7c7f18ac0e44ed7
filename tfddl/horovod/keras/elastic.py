"""`horovod.keras.elastic`: states and callbacks for scripts that call `fit`."""

from tfddl._src.horovod.elastic_callbacks import CommitStateCallback as CommitStateCallback
from tfddl._src.horovod.elastic_callbacks import (
    UpdateBatchStateCallback as UpdateBatchStateCallback,
)
from tfddl._src.horovod.elastic_callbacks import (
    UpdateEpochStateCallback as UpdateEpochStateCallback,
)
from tfddl._src.horovod.elastic_states import KerasState as KerasState
from tfddl._src.horovod.elastic_states import run as run
