"""The one package that touches Keras' private parts.

What a module relies on in Keras (3.11 to 3.15) is said where it does so, and checked by `patching`:
a Keras that has changed raises an error that says in what.

* `optimizer`: `DistributedOptimizer`.
* `compile`: refuses what can't work. `compiled_step`, `xla`: XLA compiles what is between the
  exchanges of a step.
* `fit`: what is prepared before a `fit`. `callback_events`: its events, by two callbacks of ours
  around the user's. `fit_state`: how far it has come.
* `consistency`: ranks compare their plans before the first step. `model_building`,
  `initial_state`, `seeds`: they start from the same variables. `stopping`: they end at the same
  step.
* `train_step`: a step gives the optimizer the count of its batch, and padding examples leave no
  trace. `step_state`, `batch_count`: the step's variables and numbers.
* `logs`, `loss_metrics`: what is logged is the job's, a mean over examples.
* `evaluate`, `predictions`: these are the job's, except for models that Horovod's names compiled.
* `replicated_data`, `scope_data`: arrays that all ranks have got are sharded. `data_errors`: an
  error in reading data ends all ranks. `interrupts`: so does Ctrl-C, as KeyboardInterrupt.
* `resume`: an epoch goes on where an earlier run left it.
* `builtin_callbacks`: Keras' own callbacks write files on rank 0 only, atomically; their state.
  `rank_zero`: trackers' callbacks, and `OnRankZero`, act there only, and change nothing.
* `moving_statistics`: BatchNormalization's moving statistics are those of all ranks' examples.
  `sync_batch_norm`: with synchronized=True it normalizes by the batch of all ranks.
* `virtual_data`, `virtual_fit`: with virtual workers, `fit` and `evaluate` run all of this process'
  in each step. `virtual_step`: that step. `virtual_states`: what each keeps from step to step.
  `virtual_loop`: for loops written by hand.
* `loss_scaling`: a loss-scale optimizer decides alike on all ranks.
* `update_order`: large gradients that arrive at once are applied group by group.
  `traced_functions`: what was traced is forgotten when the workers have changed.
* `virtual_strategy`: what ``tfddl.strategy(virtual_workers=…)`` returns.
* `scope`: models made under ``tfddl.strategy().scope()``. `script_strategies`: a
  `MultiWorkerMirroredStrategy` of a script is the job's; others aren't.
* `legacy`: warns where `tf.keras` is Keras 2.

The hooks act only on models compiled with `tfddl.DistributedOptimizer`, in a job of several
workers; others only learn which epoch they are in, for `tfddl.shard_dataset`, and in a job of one
worker log means over examples as well. `sync_batch_norm` acts on every layer that asks for it by
``synchronized=True``.
"""

from tfddl._src.keras_hooks import (
    builtin_callbacks,
    compile,
    compiled_step,
    evaluate,
    fit,
    logs,
    loss_metrics,
    loss_scaling,
    resume,
    scope,
    script_strategies,
    sync_batch_norm,
    train_step,
)
from tfddl._src.keras_hooks.compile import trains_together as trains_together
from tfddl._src.keras_hooks.fit_state import BroadcastCallback as BroadcastCallback
from tfddl._src.keras_hooks.fit_state import FitState as FitState
from tfddl._src.keras_hooks.fit_state import JobCallback as JobCallback
from tfddl._src.keras_hooks.initial_state import broadcast_model as broadcast_model
from tfddl._src.keras_hooks.legacy import warn_of_keras_2 as warn_of_keras_2
from tfddl._src.keras_hooks.moving_statistics import (
    sync_moving_statistics as sync_moving_statistics,
)
from tfddl._src.keras_hooks.rank_zero import OnRankZero as OnRankZero
from tfddl._src.keras_hooks.step_state import step_state as step_state

_PARTS = (
    *(script_strategies, scope, compile, compiled_step, train_step, loss_metrics, fit, logs),
    *(evaluate, resume),
    *(builtin_callbacks, loss_scaling, sync_batch_norm),
)


def install() -> None:
    """Puts all hooks in place; a second call changes nothing.

    Raises:
        UnsupportedError: Keras has changed in something that a hook relies on.
    """
    for part in _PARTS:
        part.install()
