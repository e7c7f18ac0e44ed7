"""Bears with what scripts of the age of Keras 2 say: each once with a warning and the modern line.

Only public parts of Keras are touched, and only in a process that asked for it, by
``tfddl.horovod.install(keras2=True)`` or `tfddlrun --horovod`:

* `compile`: ``compile(experimental_run_tf_function=…)``; `fit_generator` and its like
* `optimizers`: ``optimizer.variables()``, ``optimizer.lr``, ``SGD(lr=…)``, ``optimizers.legacy``
* `variables`: ``.ref()`` and ``.device`` of Keras' variables
* `backend`: ``K.get_value``, ``K.set_value``, ``K.set_session``
"""

from tfddl._src.horovod.keras2 import backend, compile, optimizers, variables
from tfddl._src.horovod.keras2.deprecations import DeprecationWarnings


def install() -> None:
    """Puts everything in place; what was put there before stays."""
    telling = DeprecationWarnings()
    for part in (compile, optimizers, variables, backend):
        part.install(telling)
