"""Horovod's names for what tfddl does: a script written for Horovod runs unedited.

Usage, in a script::

    import tfddl.horovod.tensorflow.keras as hvd    # or horovod.tensorflow.keras, under

    hvd.init()                                      # tfddlrun --horovod -np 4 python train.py

Signatures and defaults are those of Horovod 0.28.1. Everything forwards to tfddl; what tfddl can't
do raises an error that says what to use. Importing this loads no TensorFlow.
"""

from tfddl._src.horovod.aliases import HOROVOD_VERSION as __version__
from tfddl._src.horovod.aliases import install as install
from tfddl._src.horovod.run_function import run as run

__all__ = ["__version__", "install", "run"]
