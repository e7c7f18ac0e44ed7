"""`horovod.tensorflow.keras.callbacks`: the same as `tfddl.horovod.keras.callbacks`."""

from tfddl.horovod.keras.callbacks import BestModelCheckpoint as BestModelCheckpoint
from tfddl.horovod.keras.callbacks import (
    BroadcastGlobalVariablesCallback as BroadcastGlobalVariablesCallback,
)
from tfddl.horovod.keras.callbacks import (
    LearningRateScheduleCallback as LearningRateScheduleCallback,
)
from tfddl.horovod.keras.callbacks import LearningRateWarmupCallback as LearningRateWarmupCallback
from tfddl.horovod.keras.callbacks import MetricAverageCallback as MetricAverageCallback
