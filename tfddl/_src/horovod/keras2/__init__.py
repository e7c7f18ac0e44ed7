"""Keras 2 idioms that Keras 3 has dropped work again, with one deprecation warning each.

Only public API of Keras is patched, and only in a process that asks for it by
``tfddl.horovod.install(keras2=True)`` or `tfddlrun --horovod`:

* `compile`: ``compile(experimental_run_tf_function=…)``; `fit_generator` and its like
* `optimizers`: ``optimizer.variables()``, ``optimizer.lr``, ``SGD(lr=…)``, ``optimizers.legacy``
* `variables`: ``.ref()`` and ``.device`` of Keras' variables
* `backend`: ``K.get_value``, ``K.set_value``, ``K.set_session``
"""

from tfddl._src.horovod.keras2 import backend, compile, optimizers, variables
from tfddl._src.horovod.keras2.deprecations import DeprecationWarnings


def install() -> None:
    """Patches Keras. It is idempotent."""
    deprecations = DeprecationWarnings()
    for part in (compile, optimizers, variables, backend):
        part.install(deprecations)
