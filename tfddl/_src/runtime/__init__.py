"""What a process has started: threads, devices, the strategy, the transport.

* `options`: what `tfddl.init()` was asked for.
* `gpus`: which physical GPU a worker uses.
* `devices`: threads, GPUs, the strategy.
* `networks`: of our own: memory within a host, TCP between hosts.
* `meeting`: all workers, and what they compare before TensorFlow starts.
* `servers`: TensorFlow's, where something needs them.
* `connecting`: which transport, and what it needs.
* `process`: the runtime of the process, and the one mutable module global of tfddl.
"""

from tfddl._src.runtime.context import (
    AgreedGradients,
    Runtime,
    Statistics,
    StepContext,
    current,
    is_started,
    start,
    stop,
)
from tfddl._src.runtime.devices import JobResolver, choose_collective
from tfddl._src.runtime.grpc_servers import calling_line
from tfddl._src.runtime.options import Options

__all__ = [
    "AgreedGradients",
    "JobResolver",
    "Options",
    "Runtime",
    "Statistics",
    "StepContext",
    "calling_line",
    "choose_collective",
    "current",
    "is_started",
    "start",
    "stop",
]
