"""Keras 2 idioms that Keras 3 has dropped work again, with one deprecation warning each.

Only public API of Keras is patched here, and only in a process that asks for it by
``tfddl.horovod.install(keras2=True)`` or `tfddlrun --horovod`:

* `compile`: arguments that `compile` no longer takes
* `generators`: `fit_generator` and its like; ``workers=``; steps that are fractions
* `models`: ``predict_classes``, ``layer.output_shape``, ``Model(input=…, output=…)``
* `layers`: ``BatchNormalization(fused=…)``
* `saving`: weights in any HDF5 file, ``model.save("folder")``
* `callbacks`: ``ModelCheckpoint(period=…)``, metrics by old names such as ``val_acc``
* `optimizers`: ``optimizer.variables()``, ``lr``, ``decay``, ``get_weights``, ``optimizers.legacy``
* `variables`: ``.ref()`` and ``.device`` of Keras' variables
* `backend`: all of ``K.…`` in the namespace `keras`, and what is gone from both
* `namespaces`: ``keras.layers.merge``, ``keras.utils.np_utils``, `ImageDataGenerator`,
  ``tf.losses.softmax_cross_entropy``, ``keras.wrappers.scikit_learn``
* `sessions`, `tensorflow1`: ``tf.Session(config=…)``, ``tf.set_random_seed`` and the like
* `graph_mode`, `tf1_layers`: ``tf.placeholder``, ``tf.layers``: graphs for a session

They are installed in the middle of the first import of TensorFlow or Keras, which may be that of a
module of tfddl: nothing here imports layers below at its top that import TensorFlow themselves.
"""

from tfddl._src.horovod.keras2 import (
    backend,
    callbacks,
    compile,
    generators,
    layers,
    models,
    namespaces,
    optimizers,
    saving,
    tensorflow1,
    variables,
)
from tfddl._src.horovod.keras2.deprecations import DeprecationWarnings

_PARTS = (
    compile,
    generators,
    models,
    layers,
    saving,
    callbacks,
    optimizers,
    variables,
    backend,
    namespaces,
    tensorflow1,
)


def install() -> None:
    """Patches Keras and TensorFlow. It is idempotent."""
    deprecations = DeprecationWarnings()
    for part in _PARTS:
        part.install(deprecations)
