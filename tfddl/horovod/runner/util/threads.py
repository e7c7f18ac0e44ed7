"""`horovod.runner.util.threads`: functions in threads."""

from tfddl._src.horovod.threads import (
    execute_function_multithreaded as execute_function_multithreaded,
)
from tfddl._src.horovod.threads import in_thread as in_thread
from tfddl._src.horovod.threads import on_event as on_event
