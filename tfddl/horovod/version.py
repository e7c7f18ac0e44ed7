"""The version of Horovod whose API this is."""

from tfddl._src.horovod.aliases import HOROVOD_VERSION as __version__

__all__ = ["__version__"]
