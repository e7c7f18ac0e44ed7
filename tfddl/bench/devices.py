"""When what was started on a device is done."""

import functools

import tensorflow as tf


def wait_for_devices() -> None:
    """Returns once a GPU has done what it was given; a CPU has when a call returns.

    What is read back comes last in the GPU's line of work. (That has not been run on a GPU;
    `tf.test.experimental.sync_devices` fails where there are several workers.)
    """
    if _has_gpu():
        tf.ones([]).numpy()


@functools.cache
def _has_gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))
