"""What TensorFlow's runtime does, and has no public API for: the only private parts used here."""

import gc
from contextlib import AbstractContextManager

import tensorflow as tf
from tensorflow.core.function.polymorphism import function_cache
from tensorflow.python.eager import context
from tensorflow.python.framework import func_graph
from tensorflow.python.ops import control_flow_util, control_flow_v2_func_graphs


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


def may_run_twice() -> bool:
    """Whether what is added to the graph now may run several times when the outermost graph runs.

    So it is in a loop, and in a `tf.function`, which may be called several times. A branch of
    `tf.cond` runs once, or not at all.
    """
    graph = tf.compat.v1.get_default_graph()
    while True:
        # Of loops without functions (tf.compat.v1.disable_control_flow_v2).
        inner = graph._get_control_flow_context()
        if control_flow_util.GetContainingWhileContext(inner) is not None:
            return True
        if not isinstance(graph, func_graph.FuncGraph):
            return False
        if not isinstance(graph, control_flow_v2_func_graphs.CondBranchFuncGraph):
            return True
        graph = graph.outer_graph


def forget_traces() -> None:
    """Makes every `tf.function` of this process trace anew when it is next called.

    What was traced may hold the number of workers, or the connections to them, as constants. It
    doesn't reach concrete functions that a script holds itself.
    """
    # All that a tf.function has traced is in a cache of its own (polymorphic_function.py); nothing
    # lists the functions.
    for found in gc.get_objects():
        # Not isinstance, which asks objects that stand for others (weakref.proxy) for their class.
        if type(found) is function_cache.FunctionCache:
            found.clear()


def eager_mode() -> AbstractContextManager[None]:
    """Within it operations run at once, also after `tf.compat.v1.disable_eager_execution`."""
    found: AbstractContextManager[None] = context.eager_mode()
    return found
