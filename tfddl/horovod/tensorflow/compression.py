"""`horovod.tensorflow.compression`: the precision in which tensors are sent."""

from tfddl.horovod.keras import Compression as Compression
