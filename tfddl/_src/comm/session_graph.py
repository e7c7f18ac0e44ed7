"""Operations in a `tf.Graph` that a session of TensorFlow 1 runs.

A session runs what it is asked for and what that needs, in any order, on few threads, and another
order on each rank. So there operations have no order: ranks match them by their names, and each
waits in a thread of its own, which the session doesn't miss.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfddl.errors import DisagreementError

Arrays = list[np.ndarray]

_NO_DIRECTORY = "/dev/null"
_MAX_TEXT_BYTES = 3500
"""Linux takes paths of 4096 bytes."""


def is_for_session() -> bool:
    """Whether what is called now becomes part of a graph that a session runs.

    A function's graph belongs to whatever calls the function: a session's graph, or Python.
    """
    if tf.executing_eagerly():
        return False
    with tf.init_scope():
        return not tf.executing_eagerly()


def unique_name(ranks: Sequence[int], name: str) -> str:
    """A name for an operation of some ranks, which no other of theirs in the session's graph has.

    Ranks that make the same graph, or at least call the operations of one name in the same order,
    get the same names. An operation that runs several times in a run of the session has one name:
    see `may_run_twice`.

    Args:
        ranks: Who takes part.
        name: How the user calls it.
    """
    graph = _outermost()
    with graph.as_default(), tf.name_scope(""):
        unique: str = graph.unique_name(f"tfddl/{'_'.join(map(str, ranks))}/{name}")
    return unique


def call_in_own_thread(
    function: Callable[..., Arrays], inputs: Sequence[tf.Tensor], dtypes: Sequence[tf.DType]
) -> list[tf.Tensor]:
    """Adds a call of Python to a graph, which runs it in a thread that it takes from nobody.

    `tf.numpy_function` alone occupies one of the session's threads, of which there may be one: with
    each rank's in another operation, none would go on.

    Args:
        function: Gets and returns arrays.
        inputs: What it gets.
        dtypes: Of what it returns.

    Returns:
        What the function returns, of unknown shapes. Where it raises a `DisagreementError`, the
        session raises `tf.errors.FailedPreconditionError` with its text.
    """
    with tf.device("CPU:0"):
        text, *arrived = _PythonCalls.of(_outermost()).add(function, inputs, dtypes)
        # A function's ValueError is an InvalidArgumentError, most others are UnknownErrors. The
        # only kernels that fail with FAILED_PRECONDITION and a text of ours are those of files:
        # what isn't a directory has no files in it. It itself can be read, and is empty.
        empty = tf.io.read_file(tf.strings.join([_NO_DIRECTORY, text]))
        # Grappler's dependency optimizer would drop an edge from an operation without state.
        with tf.control_dependencies([tf.debugging.Assert(tf.equal(empty, ""), [text])]):
            return [tf.identity(tensor) for tensor in arrived]


def _outermost() -> tf.Graph:
    """The session's graph, also where a function's graph is made."""
    graph = tf.compat.v1.get_default_graph()
    while hasattr(graph, "outer_graph"):
        graph = graph.outer_graph
    return graph


class _PythonCalls:
    """All calls of Python in a session's graph.

    Calls with the same dtypes share one function of the graph: a session compares all functions
    each time that it is asked for something new.
    """

    def __init__(self, graph: tf.Graph) -> None:
        self._graph = graph
        self._calls: list[Callable[..., Arrays]] = []
        self._functions: dict[tuple[tuple[tf.DType, ...], ...], object] = {}

    @classmethod
    def of(cls, graph: tf.Graph) -> "_PythonCalls":
        """Those of a graph, which keeps them as it keeps the functions of `tf.numpy_function`."""
        if not hasattr(graph, "_tfddl_python_calls"):
            graph._tfddl_python_calls = cls(graph)
        calls: _PythonCalls = graph._tfddl_python_calls
        return calls

    def add(
        self, call: Callable[..., Arrays], inputs: Sequence[tf.Tensor], dtypes: Sequence[tf.DType]
    ) -> list[tf.Tensor]:
        """Adds one.

        Returns:
            The text of a `DisagreementError` or "", and what the function returns.
        """
        given = [tf.constant(len(self._calls), tf.int64), *inputs]
        self._calls.append(call)
        returned = [tf.string, *dtypes]
        key = tuple(tensor.dtype for tensor in given), tuple(returned)
        if key not in self._functions:
            with self._graph.as_default():
                self._functions[key] = self._make_function(*key)
        return _in_own_thread(self._functions[key], given, returned)

    def _make_function(self, inputs: Sequence[tf.DType], returned: Sequence[tf.DType]) -> object:
        def run(number: Any, *given: Any) -> list[Any]:
            try:
                return [b"", *self._calls[number](*given)]
            except DisagreementError as error:
                return [
                    _path_of(str(error)),
                    *(np.zeros(0, dtype.as_numpy_dtype) for dtype in returned[1:]),
                ]

        @tf.function(autograph=False, input_signature=[tf.TensorSpec(None, t) for t in inputs])
        def function(*given: tf.Tensor) -> list[tf.Tensor]:
            arrived: list[tf.Tensor] = tf.numpy_function(
                run, given, list(returned), name="tfddl_collective"
            )
            return arrived

        return function.get_concrete_function()


def _path_of(text: str) -> bytes:
    """A text as part of a path, as much as fits, without half a character at its end."""
    cut = f"/{text}".encode()[:_MAX_TEXT_BYTES]
    return cut.decode(errors="ignore").encode()


def _in_own_thread(
    function: object, inputs: Sequence[tf.Tensor], dtypes: Sequence[tf.DType]
) -> list[tf.Tensor]:
    """Calls a function on a dataset's only element.

    `DatasetToSingleElement` is a HybridAsyncOpKernel (kernels/data/iterator_ops.cc): it has a
    thread of its own, in which, without inter-op parallelism, all of the dataset runs.
    """
    shapes = [tf.TensorShape(None)] * len(dtypes)
    element = tf.raw_ops.TensorDataset(
        components=list(inputs), output_shapes=[tf.TensorShape(None)] * len(inputs)
    )
    mapped = tf.raw_ops.MapDataset(
        input_dataset=element,
        other_arguments=[],
        f=function,
        output_types=list(dtypes),
        output_shapes=shapes,
        use_inter_op_parallelism=False,
    )
    outputs: list[tf.Tensor] = tf.raw_ops.DatasetToSingleElement(
        dataset=mapped, output_types=list(dtypes), output_shapes=shapes
    )
    return outputs
