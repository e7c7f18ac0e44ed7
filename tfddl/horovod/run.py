"""`horovod.run`: a function, and in Horovod 0.18 and 0.19 a module, the launcher's."""

import sys
from types import ModuleType
from typing import Any

from tfddl._src.horovod.run_function import run as run

__all__ = ["run"]


class _CallableModule(ModuleType):
    """Importing this module replaces the function of the same name in `horovod`."""

    def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
        return run(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
