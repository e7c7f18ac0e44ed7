"""`horovod.common.basics`: ranks and sizes as methods of an object."""

from tfddl._src.horovod.common_basics import HorovodBasics as HorovodBasics
