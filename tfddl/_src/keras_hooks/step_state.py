"""What a model's steps and the loop around them tell each other, in variables."""

import dataclasses
import warnings
from typing import Any

import tensorflow as tf

from tfddl._src.collectives import ReduceOp, allreduce
from tfddl._src.keras_hooks.fit_state import FitState
from tfddl._src.keras_hooks.optimizer import innermost
from tfddl._src.runtime import current

UNEVEN = (
    "Workers had different numbers of examples in a step, and their mean gradients were averaged "
    "as Horovod does: an example in a small batch counts more than one in a large one. HINT: "
    "tfddl.DistributedOptimizer(optimizer) weights them by their numbers, and "
    "tfddl.shard_dataset(x, y, batch_size=…) deals the examples out evenly: together they train as "
    "one process would."
)


@dataclasses.dataclass(frozen=True)
class StepState:
    """The variables of a model's training steps.

    Read and written in graphs, so that they need no call into Python within a step.
    """

    stop: tf.Variable
    """Above 0 where this rank wants training to end; sent with every step."""

    stop_agreed: tf.Variable
    """Above 0 once a step has heard that from any rank."""

    steps: tf.Variable
    """Steps run since it was last set to 0."""

    totals: tf.Variable
    """All ranks' count and number of examples in the step, once it has heard of them."""

    uneven: tf.Variable
    """Whether ranks had different numbers of examples in a step that didn't weight by them."""

    examples: tf.Variable
    """Examples that this rank has trained on since the state was made, without padding."""

    last_examples: tf.Variable
    """Examples of the last step; 0 for a padding example."""

    @classmethod
    def new(cls) -> "StepState":
        """State for a model, where the gradients stay: on the CPU, or on the GPU with NCCL."""
        # init_scope: the first step may be traced when this is called, and variables that are made
        # within a graph would be made anew with each trace.
        with tf.init_scope(), tf.device(current().process_group.device):
            return cls(
                stop=tf.Variable(0.0, trainable=False, name="tfddl_stop"),
                stop_agreed=tf.Variable(0.0, trainable=False, name="tfddl_stop_agreed"),
                totals=tf.Variable(
                    [0.0, 0.0], trainable=False, dtype=tf.float64, name="tfddl_totals"
                ),
                steps=tf.Variable(0, trainable=False, dtype=tf.int64, name="tfddl_steps"),
                uneven=tf.Variable(False, trainable=False, name="tfddl_uneven"),
                examples=tf.Variable(0, trainable=False, dtype=tf.int64, name="tfddl_examples"),
                last_examples=new_last_examples(),
            )

    def clear_stop(self) -> None:
        """Forgets requests to stop."""
        self.stop.assign(0.0)
        self.stop_agreed.assign(0.0)


def new_last_examples() -> tf.Variable:
    """A variable for the number of examples of the last step, int64, on the current device."""
    return tf.Variable(0, trainable=False, dtype=tf.int64, name="tfddl_last_examples")


def step_state(model: Any) -> StepState:
    """The state of a model whose train function has been made."""
    return model.train_step.tfddl_state


def last_examples(model: Any, *, training: bool) -> int:
    """This rank's number of examples in its last training or test step; 0 for padding."""
    variable = step_state(model).last_examples if training else model.test_step.tfddl_last_examples
    return int(variable.numpy())


def warn_of_uneven_steps(fit: FitState) -> None:
    """Warns once, on rank 0, where means of different numbers of examples were averaged alike.

    All ranks must call it together.
    """
    if fit.warned_of_uneven or innermost(fit.model.optimizer).tfddl_options.by_count:
        return
    uneven = step_state(fit.model).uneven
    anyone = allreduce(tf.cast(uneven, tf.int32), ReduceOp.MAX, name="uneven")
    if anyone.numpy():
        fit.warned_of_uneven = True
        if current().cluster.rank == 0:
            warnings.warn(UNEVEN, stacklevel=2)
