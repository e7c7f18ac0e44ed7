"""The one package that touches Keras' private parts.

What each part of it does, and on what in Keras it relies:

* `patching`: puts a function of ours around one of Keras', after checking that it is the one we
  know. A Keras that has changed beyond that fails here, with a message.
* `script_strategies`: a `MultiWorkerMirroredStrategy` of a script is the job's; others aren't.
* `scope`: models made under ``tfddl.strategy().scope()`` train as with Horovod's API.
* `compile`: `compile` refuses what can't work, and keeps XLA out of steps with collectives.
* `train_step`: tells the optimizer the count of its batch; padding examples leave no trace; what is
  logged is a mean over examples.
* `fit`: ranks compare their plans before the first step, start from the same state, end at the
  same step, and log what the job did.
* `evaluate`: `evaluate` and `predict` are the job's: `replicated_data` deals arrays out. Those of
  models that Horovod's names have compiled are each rank's own.
* `resume`: an epoch goes on where an earlier run left it.
* `builtin_callbacks`: Keras' own callbacks write files on rank 0 only, and whole; their state.
* `data_errors`: data that can't be read ends all ranks, with the error that there was.
* `fit_state`: what the others know of the `fit` that is running.
* `moving_statistics`: BatchNormalization's moving statistics are those of all ranks' examples.
* `sync_batch_norm`: BatchNormalization(synchronized=True) normalizes by the batch of all ranks.
* `loss_scaling`: a loss-scale optimizer decides alike on all ranks.
* `legacy`: warns where `tf.keras` is Keras 2.

The hooks act only on models compiled with `tfddl.DistributedOptimizer`, in a job of several
workers; other models only get to know the epoch they are in, for `tfddl.shard_dataset`, and in a
job of one worker log means over examples as well. `sync_batch_norm` acts on every layer that asks
for it by ``synchronized=True``.
"""

from tfddl._src.keras_hooks import (
    builtin_callbacks,
    compile,
    evaluate,
    fit,
    loss_scaling,
    resume,
    scope,
    script_strategies,
    sync_batch_norm,
    train_step,
)
from tfddl._src.keras_hooks.compile import trains_together as trains_together
from tfddl._src.keras_hooks.fit import broadcast_model as broadcast_model
from tfddl._src.keras_hooks.fit_state import BroadcastCallback as BroadcastCallback
from tfddl._src.keras_hooks.fit_state import FitState as FitState
from tfddl._src.keras_hooks.fit_state import JobCallback as JobCallback
from tfddl._src.keras_hooks.legacy import warn_of_keras_2 as warn_of_keras_2
from tfddl._src.keras_hooks.moving_statistics import (
    pool_batch_normalization as pool_batch_normalization,
)


def install() -> None:
    """Puts all hooks in place; a second call changes nothing.

    Raises:
        UnsupportedError: Keras has changed in something that a hook relies on.
    """
    script_strategies.install()
    scope.install()
    compile.install()
    train_step.install()
    fit.install()
    evaluate.install()
    resume.install()
    builtin_callbacks.install()
    loss_scaling.install()
    sync_batch_norm.install()
