"""`horovod.tensorflow.sync_batch_norm`: batch normalization over all workers."""

from tfddl._src.horovod.sync_batch_norm import SyncBatchNormalization as SyncBatchNormalization
