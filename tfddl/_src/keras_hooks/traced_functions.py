"""What Keras keeps of a model's steps between calls of `fit`, `evaluate` and `predict`."""

import gc

import keras


def forget_functions() -> None:
    """Makes all models of this process make the functions of their steps anew.

    These may hold which examples, and which virtual workers, are this worker's.
    """
    # Nothing lists the models. See `comm.tensorflow_private.forget_traces`.
    for found in gc.get_objects():
        if issubclass(type(found), keras.Model):
            found.train_function = found.test_function = found.predict_function = None
