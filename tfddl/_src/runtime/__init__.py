"""What a process has started: threads, devices, the strategy, the process group.

* `options`: what `tfddl.init()` was asked for.
* `gpu_discovery`: which physical GPU a worker uses.
* `devices`: threads, GPUs, the strategy.
* `native_setup`: networks of our own: memory within a host, TCP between hosts.
* `startup_checks`: workers join the job, and compare what they were asked for.
* `grpc_servers`: TensorFlow's, where something needs them.
* `group_setup`: which process group, and what it needs.
* `context`: the runtime of the process, and the one mutable module global of tfddl.
* `per_runtime`: what upper layers keep for each runtime.
"""

from tfddl._src.runtime.context import Runtime, current, is_started, restart, start, stop
from tfddl._src.runtime.devices import JobResolver, choose_transport
from tfddl._src.runtime.grpc_servers import calling_line
from tfddl._src.runtime.options import Options
from tfddl._src.runtime.per_runtime import PerRuntime

__all__ = [
    "JobResolver",
    "Options",
    "PerRuntime",
    "Runtime",
    "calling_line",
    "choose_transport",
    "current",
    "is_started",
    "restart",
    "start",
    "stop",
]
