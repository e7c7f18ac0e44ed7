"""`horovod.keras.callbacks`: callbacks that go on every rank."""

from tfddl._src.horovod.callbacks import BestModelCheckpoint as BestModelCheckpoint
from tfddl._src.horovod.callbacks import (
    BroadcastGlobalVariablesCallback as BroadcastGlobalVariablesCallback,
)
from tfddl._src.horovod.callbacks import (
    LearningRateScheduleCallback as LearningRateScheduleCallback,
)
from tfddl._src.horovod.callbacks import LearningRateWarmupCallback as LearningRateWarmupCallback
from tfddl._src.horovod.callbacks import MetricAverageCallback as MetricAverageCallback
