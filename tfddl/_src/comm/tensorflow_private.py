"""What TensorFlow's runtime does, and has no public API for: the only private parts used here."""

import tensorflow as tf
from tensorflow.python.eager import context
from tensorflow.python.ops import control_flow_util


def abort_collectives(text: str) -> None:
    """Aborts all collectives of this process that wait, and all that follow.

    Args:
        text: What the `tf.errors.DeadlineExceededError` of each of them says.
    """
    # It can't be undone without a new context (its docstring): the process can train no more, and
    # no script could go on as if nothing had happened.
    context.context().abort_collective_ops(tf.errors.DEADLINE_EXCEEDED, text)


def is_for_xla() -> bool:
    """Whether the graph that is being made is one that XLA will compile: with jit_compile=True."""
    # `tf.function(jit_compile=True)` is traced within an XLAControlFlowContext (OptionalXlaContext
    # in eager/polymorphic_function/polymorphic_function.py); in the graph itself nothing tells yet.
    graph = tf.compat.v1.get_default_graph()
    return bool(control_flow_util.GraphOrParentsInXlaContext(graph))
