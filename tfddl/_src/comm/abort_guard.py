"""Whether what a collective gives back may be used: not once they were ended in this process."""

import itertools

import tensorflow as tf

from tfddl._src.comm.errors import StalledOpError

_ENDED = (
    "the collectives of this process were ended while this one was under way: its result is not "
    "to be trusted; the log says why they were ended"
)


_NUMBERS = itertools.count()


class AbortGuard:
    """Raises instead of handing out the result of an operation that was cut short.

    `abort_collective_ops` ends what still waits with an error. But a kernel of NCCL that is running
    is cut short by ``ncclCommAbort`` (`NcclManager::StartAbort`, nccl_manager.cc), and its callback
    reports success, which `BaseCollectiveExecutor::GetStatus` (base_collective_executor.cc) lets
    through.

    In a graph the flag has to be read after the result is there, where the result is, and without
    a copy from the GPU, which would wait for all that the GPU was given before. So the flag is
    whether a variable exists: `VarIsInitializedOp` runs on any device, and answers in host memory.
    """

    def __init__(self, device: str) -> None:
        """A guard of operations that haven't been ended.

        Args:
            device: Where the results are.
        """
        self._device = device
        self._text = ""
        with tf.device(device):
            # Not a tf.Variable: whoever holds the handle of one keeps it alive.
            name = f"tfddl_not_ended_{next(_NUMBERS)}"
            self._flag = tf.raw_ops.VarHandleOp(dtype=tf.float32, shape=[], shared_name=name)
            tf.raw_ops.AssignVariableOp(resource=self._flag, value=tf.constant(0.0))

    def abort(self, text: str) -> None:
        """Lets no result through from now on; to be called before operations are ended."""
        self._text = self._text or text
        tf.raw_ops.DestroyResourceOp(resource=self._flag, ignore_lookup_error=True)

    def checked(self, result: tf.Tensor, *, in_graphs: bool) -> tf.Tensor:
        """The result of an operation, once it is known that it may be used.

        Args:
            result: Any shape and dtype.
            in_graphs: Whether a graph checks as well. RING's operations end with an error
                themselves, and need it not.

        Raises:
            StalledOpError: Eagerly, after `abort`. A graph raises a
                `tf.errors.InvalidArgumentError`.
        """
        if tf.executing_eagerly():
            if self._text:
                raise StalledOpError(self._text)
            return result
        if not in_graphs:
            return result
        with tf.device(self._device):
            with tf.control_dependencies([result]):
                exists = tf.raw_ops.VarIsInitializedOp(resource=self._flag)
                fine = assert_on_host(exists, _ENDED)
            with tf.control_dependencies([fine]):
                return tf.identity(result)


def assert_on_host(condition: tf.Tensor, text: str) -> tf.Operation:
    """Fails in a graph where a condition doesn't hold, and stays on the device.

    Args:
        condition: Scalar bool, in host memory.
        text: What the `tf.errors.InvalidArgumentError` says.
    """
    # A text is the CPU's: whatever it waited for would have to get there first.
    with tf.control_dependencies(None), tf.device("CPU:0"):
        data = tf.constant(text)
    return tf.raw_ops.Assert(condition=condition, data=[data])
