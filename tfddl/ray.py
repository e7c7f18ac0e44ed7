"""Workers as actors of Ray, its own or Ray Train's: ``pip install '.[ray]'`` in a checkout."""

import importlib
from typing import TYPE_CHECKING, Any

from tfddl._src.engines.ray import RayExecutor as RayExecutor
from tfddl._src.engines.ray_options import RaySettings as RaySettings
from tfddl._src.engines.ray_options import import_ray_train
from tfddl._src.engines.ray_rows import DatasetRows as DatasetRows

if TYPE_CHECKING:
    from tfddl._src.callbacks.ray_report import ReportCheckpoint as ReportCheckpoint
    from tfddl._src.engines.ray_train import TfddlTrainer as TfddlTrainer

__all__ = ["DatasetRows", "RayExecutor", "RaySettings", "ReportCheckpoint", "TfddlTrainer"]

# The one loads TensorFlow, the other ray.
_MODULES = {"ReportCheckpoint": "callbacks.ray_report", "TfddlTrainer": "engines.ray_train"}


if not TYPE_CHECKING:  # A type checker would take any name for one that is there.

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'tfddl.ray' has no attribute {name!r}")
        import_ray_train()
        return getattr(importlib.import_module(f"tfddl._src.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
