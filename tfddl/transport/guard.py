"""Whether what a collective gives back may be used: not once they were ended in this process."""

from collections.abc import Sequence

import tensorflow as tf

from tfddl.transport.errors import RankStalledError

_ENDED = (
    "the collectives of this process were ended while this one was under way, so that its result "
    "can't be trusted; the log says why they were ended"
)


class Guard:
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
            self._flag = tf.Variable(0.0, trainable=False, name="tfddl_not_ended")

    def end(self, text: str) -> None:
        """Lets no result through from now on; to be called before operations are ended."""
        self._text = self._text or text
        tf.raw_ops.DestroyResourceOp(resource=self._flag.handle, ignore_lookup_error=True)

    def checked(self, results: Sequence[tf.Tensor], *, in_graphs: bool) -> list[tf.Tensor]:
        """The results, once it is known that they may be used.

        Args:
            results: What an operation gave back.
            in_graphs: Whether a graph checks as well. RING's operations end with an error
                themselves, and need it not.

        Raises:
            RankStalledError: Eagerly, after `end`. A graph raises a
                `tf.errors.InvalidArgumentError`.
        """
        if tf.executing_eagerly():
            if self._text:
                raise RankStalledError(self._text)
            return list(results)
        if not in_graphs:
            return list(results)
        with tf.device(self._device):
            with tf.control_dependencies(list(results)):
                exists = tf.raw_ops.VarIsInitializedOp(resource=self._flag.handle)
                # Not tf.debugging.Assert, which makes a branch of it.
                fine = tf.raw_ops.Assert(condition=exists, data=[tf.constant(_ENDED)])
            with tf.control_dependencies([fine]):
                return [tf.identity(result) for result in results]
