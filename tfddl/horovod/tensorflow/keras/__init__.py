"""`horovod.tensorflow.keras`: the same as `tfddl.horovod.keras`."""

from tfddl.horovod import keras as _keras
from tfddl.horovod.keras import *  # noqa: F403 - one home, two names
from tfddl.horovod.tensorflow.keras import callbacks as callbacks
from tfddl.horovod.tensorflow.keras import elastic as elastic
