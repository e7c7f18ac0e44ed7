"""What `horovod.keras` and `horovod.tensorflow.keras` have in common: here they are the same."""

from tfddl.horovod.keras import callbacks as callbacks
from tfddl.horovod.keras import elastic as elastic
