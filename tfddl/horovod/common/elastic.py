"""`horovod.common.elastic`: `State`, the base of the elastic states, and exceptions."""

from tfddl._src.horovod.elastic_states import State as ObjectState
from tfddl._src.horovod.elastic_states import State as State
from tfddl._src.horovod.exceptions import HorovodInternalError as HorovodInternalError
from tfddl._src.horovod.exceptions import HostsUpdatedInterrupt as HostsUpdatedInterrupt

__all__ = ["HorovodInternalError", "HostsUpdatedInterrupt", "ObjectState", "State"]
