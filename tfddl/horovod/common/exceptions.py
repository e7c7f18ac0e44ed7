"""The exceptions of elastic training, where Horovod has them."""

from tfddl._src.horovod.exceptions import HorovodInternalError as HorovodInternalError
from tfddl._src.horovod.exceptions import HostsUpdatedInterrupt as HostsUpdatedInterrupt

__all__ = ["HorovodInternalError", "HostsUpdatedInterrupt"]
