"""Idioms of Keras 2 and TensorFlow 1, each checked for what it does; prints the warnings.

Argument: a directory for files.
"""

import os
import pickle
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import tfddl.horovod

tfddl.horovod.install(keras2=True)

import keras  # noqa: E402 - after `install`, as under tfddlrun --horovod
import tensorflow as tf  # noqa: E402
from keras import backend as K  # noqa: E402

from tfddl._src.horovod.keras2.deprecations import Keras2Warning  # noqa: E402

found: list[str] = []
warnings.simplefilter("always")
warnings.showwarning = lambda message, kind, *_: (
    found.append(str(message)) if kind is Keras2Warning else None
)

x = np.random.default_rng(1).random((12, 4), dtype=np.float32)
y = (x.sum(1) > 2).astype("float32")[:, None]


def batches() -> Iterator[tuple[Any, Any]]:
    while True:
        yield x[:4], y[:4]


def make_model(optimizer: Any = "sgd") -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [keras.layers.Dense(3, input_shape=(4,)), keras.layers.Dense(1, activation="sigmoid")]
    )
    model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
    return model


def distance(y_true: Any, y_pred: Any) -> Any:
    return K.mean(K.abs(y_true - y_pred))


def refused(call: Any, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


def sessions() -> None:
    config = tf.ConfigProto(inter_op_parallelism_threads=3)
    config.gpu_options.allow_growth = True
    K.set_session(tf.Session(config=config))
    assert tf.config.threading.get_inter_op_parallelism_threads() == 3
    tf.compat.v1.keras.backend.set_session(tf.compat.v1.Session(config=config))
    K.get_session().run(tf.global_variables_initializer())
    with tf.Session() as session:
        refused(lambda: session.run(tf.constant(1)), "HINT: tensor.numpy() for a value")
    with tf.Graph().as_default():  # What really is a graph stays one.
        tensor = tf.compat.v1.placeholder(tf.float32, ())
        with tf.compat.v1.Session() as session:
            assert session.run(2 * tensor, {tensor: 3.0}) == 6.0
    tf.disable_v2_behavior()
    tf.enable_eager_execution(config)
    assert tf.executing_eagerly()
    with tf.get_default_graph().as_default():
        assert tf.executing_eagerly()


def names_of_tensorflow_1() -> None:
    tf.set_random_seed(1)
    assert float(tf.log(1.0)) == 0.0
    assert tf.gfile.Exists(sys.argv[1])
    assert tf.image.resize_images(x[None, ..., None], [2, 2]).shape == (1, 2, 2, 1)
    assert not hasattr(tf, "contrib")
    assert not hasattr(tf, "nonsense")
    assert tf.estimator.ModeKeys.TRAIN == "train"
    assert not hasattr(tf.estimator, "Estimator")
    assert not hasattr(tf.layers, "conv3d_transpose")
    model = make_model()  # Without one, these would begin a graph for a session.
    assert issubclass(tf.train.SessionRunHook, object)
    for call, modern in (
        (lambda: tf.placeholder(tf.float32), "of model.fit or of a tf.function"),
        (lambda: tf.compat.v1.placeholder(tf.float32), "of model.fit or of a tf.function"),
        (lambda: tf.train.AdamOptimizer(1e-3), "write keras.optimizers.Adam"),
        (lambda: tf.train.MonitoredTrainingSession(hooks=[]), "write model.fit"),
        (lambda: tf.layers.dense(x, 2), "write keras.layers"),
        (lambda: tf.data.Dataset.range(2).make_one_shot_iterator(), "model.fit takes the dataset"),
    ):
        refused(call, modern)
    assert model(x).shape == (12, 1)


def backend() -> None:
    assert float(K.sum(K.flatten(K.square(K.ones_like(x))))) == 48.0
    assert K.int_shape(K.permute_dimensions(K.variable(x), (1, 0))) == (4, 12)
    assert K.tf is tf
    assert K.tensorflow_backend.sum is not None
    assert not hasattr(K, "nonsense")
    assert not K.is_tensor(3)
    K.set_image_dim_ordering("tf")
    assert (K.image_dim_ordering(), K.image_data_format()) == ("tf", "channels_last")
    assert K.placeholder(ndim=2).shape == (None, None)
    model = make_model()
    function = K.function([model.input, K.learning_phase()], [model.layers[0].output])
    kernel, bias = model.layers[0].get_weights()
    np.testing.assert_allclose(function([x, 0])[0], x @ kernel + bias, atol=1e-5)
    assert K.function(model.inputs, model.output)([x]).shape == (12, 1)
    refused(lambda: K.function(model.inputs, model.outputs, updates=[1]), "a tf.function with")


def phases() -> None:
    class Phase(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return K.in_train_phase(lambda: 0 * x + 1, 0 * x + 2)

    model = keras.Sequential([keras.Input((4,)), Phase()])
    model.compile("sgd", "mse")
    assert model.evaluate(x, 0 * x + 2, verbose=0) == 0
    assert model.fit(x, 0 * x + 1, verbose=0).history["loss"] == [0]
    assert K.in_test_phase(3, 4) == 3
    assert K.in_train_phase(3, 4, training=True) == 3
    K.set_learning_phase(1)
    assert K.learning_phase() == 1


def generators() -> None:
    model = make_model()
    history = model.fit_generator(
        batches(), 2.5, 2, 0, validation_data=batches(), validation_steps=1
    )
    assert (history.params["steps"], history.epoch) == (3, [0, 1])
    assert int(model.optimizer.iterations) == 6
    again = make_model()
    again.fit(batches(), steps_per_epoch=np.float64(3), nb_epoch=2, verbose=0)
    np.testing.assert_array_equal(again.get_weights()[0], model.get_weights()[0])
    assert model.evaluate_generator(batches(), 2) == model.evaluate(x[:4], y[:4], verbose=0)
    assert model.predict_generator(batches(), 2, workers=2).shape == (8, 1)
    pairs = zip([x, x], [y, y], strict=True)
    assert model.fit(pairs, verbose=0, validation_data=iter([(x, y)])).params["steps"] is None


def callbacks() -> None:
    class Reads(keras.callbacks.Callback):
        def __init__(self) -> None:  # As scripts do, without the base's.
            self.seen: list[Any] = []

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seen.append(("val_acc" in logs, logs.get("val_acc"), logs.get("nonsense"), logs))

    reads = Reads()
    stop = keras.callbacks.EarlyStopping(monitor="val_acc", patience=9)
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="val_acc", epsilon=0.5, patience=3)
    assert plateau.min_delta == 0.5
    checkpoints = [
        keras.callbacks.ModelCheckpoint("w.{epoch:02d}-{val_acc:.2f}.hdf5", period=2),
        keras.callbacks.ModelCheckpoint(
            "best", "val_acc", save_best_only=True, save_weights_only=True
        ),
    ]
    board = keras.callbacks.TensorBoard("logs", batch_size=3, write_grads=True)
    model = make_model()
    told = [*checkpoints, stop, plateau, reads, board]
    history = model.fit(x, y, epochs=5, verbose=0, validation_data=(x, y), callbacks=told).history
    accuracy = history["val_accuracy"]
    assert history["val_acc"] == accuracy
    assert "val_acc" not in list(history)
    assert type(pickle.loads(pickle.dumps(history))) is dict
    assert [seen[:3] for seen in reads.seen] == [(True, value, None) for value in accuracy]
    assert reads.seen[0][3]["lr"] == reads.seen[0][3]["learning_rate"]
    assert (stop.best, stop.mode) == (max(accuracy), "max")
    assert board.log_dir == "logs"
    model.compile("sgd", "mse", metrics=[distance])
    least = keras.callbacks.EarlyStopping(monitor="distance", patience=9)
    values = model.fit(x, y, epochs=3, verbose=0, callbacks=[least]).history["distance"]
    assert (least.best, least.mode) == (min(values), "min")
    names = {f"w.{epoch:02d}-{accuracy[epoch - 1]:.2f}.hdf5" for epoch in (2, 4)}
    assert names == {name for name in os.listdir(".") if name.startswith("w.")}
    best = make_model()
    best.load_weights("best")
    assert best.evaluate(x, y, verbose=0)[1] == np.float32(max(accuracy))


def files() -> None:
    model = make_model()
    model.fit(x, y, verbose=0)
    expected = model.predict(x, verbose=0)
    for name in ("w.h5", "w.hdf5", "w"):
        model.save_weights(name)
        other = make_model()
        other.load_weights(name)
        np.testing.assert_array_equal(other.predict(x, verbose=0), expected)
    renamed = make_model()
    renamed.load_weights("w", by_name=True)
    model.save("model.hdf5")
    os.rename("model.hdf5", "model")
    for _ in range(2):
        model.save("folder", save_format="tf")
    keras.models.save_model(model, "saved.keras")
    for name in ("model", "folder", "saved.keras"):
        for namespace in (keras, tf.keras):
            loaded = namespace.models.load_model(name)
            np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-6)


def optimizers() -> None:
    sgd = keras.optimizers.SGD(lr=0.1, decay=0.5)
    variable = keras.Variable([1.0])
    for _ in range(3):
        sgd.apply_gradients([(tf.constant([1.0]), variable)])
    # Keras 2: lr / (1 + decay * steps)
    assert abs(float(variable[0]) - (1 - 0.1 * (1 + 1 / 1.5 + 1 / 2))) < 1e-6
    assert abs(float(sgd.lr) - 0.1) < 1e-7  # Which callbacks may assign.
    assert type(sgd).from_config(sgd.get_config()).keras2_decay == 0.5
    adam = keras.optimizers.Adam(lr=0.1, epsilon=None, decay=0.0)
    assert adam.epsilon == 1e-7
    assert "decay" not in adam.get_config()
    adam.build([variable])
    state = adam.get_weights()
    adam.set_weights([value + 1 for value in state])
    assert int(adam.get_weights()[0]) == 1
    assert len(adam.weights) == len(state)
    assert keras.optimizers.adam is keras.optimizers.Adam

    from keras.optimizers.legacy import optimizer_v2

    class Own(optimizer_v2.OptimizerV2):
        pass

    refused(lambda: Own("own"), "HINT: subclass keras.optimizers.Optimizer")


def namespaces() -> None:
    from keras.engine.topology import InputSpec, Layer
    from keras.layers import CuDNNLSTM
    from keras.layers.merge import concatenate
    from keras.losses import mse
    from keras.preprocessing.image import ImageDataGenerator, load_img
    from keras.preprocessing.text import Tokenizer
    from keras.utils import multi_gpu_model, np_utils
    from keras.utils.generic_utils import Progbar
    from tensorflow.keras.layers.experimental.preprocessing import Rescaling
    from tensorflow.python.keras import backend as private_backend
    from tensorflow.python.keras.layers import CuDNNLSTM as PrivateLSTM
    from tensorflow.python.keras.models import Model

    assert Model is keras.Model
    assert tf.keras.losses.mean_squared_error is tf.keras.losses.mse is keras.losses.mse
    assert PrivateLSTM is keras.layers.LSTM
    private_backend.set_session(None)
    assert Layer is keras.layers.Layer
    assert InputSpec is keras.layers.InputSpec
    assert concatenate is keras.layers.concatenate
    assert Progbar is keras.utils.Progbar
    assert Rescaling is keras.layers.Rescaling
    assert mse is keras.losses.mean_squared_error
    assert CuDNNLSTM is keras.layers.LSTM
    assert Tokenizer is not None
    assert np_utils.to_categorical([0, 1]).tolist() == [[1, 0], [0, 1]]
    assert tf.compat.v1.keras.layers.CuDNNGRU is keras.layers.GRU
    assert not hasattr(keras.layers, "nonsense")
    assert not hasattr(np_utils, "nonsense")
    refused(lambda: multi_gpu_model(make_model(), gpus=2), "tfddlrun --horovod -np N")
    from keras.wrappers.scikit_learn import KerasClassifier

    refused(lambda: KerasClassifier(build_fn=make_model, epochs=1), "SKLearnClassifier(model")
    loss = tf.losses.softmax_cross_entropy([[0.0, 1.0]], [[2.0, 2.0]])
    np.testing.assert_allclose(loss, np.log(2.0), rtol=1e-6)
    assert tf.losses.huber_loss([[0.0], [0.0]], [[1.0], [3.0]]).shape == ()
    assert tf.keras.losses.huber_loss is keras.losses.huber_loss is keras.losses.huber
    assert not hasattr(keras.losses, "log_loss")
    flow = ImageDataGenerator(rescale=0.5).flow(np.ones((4, 8, 8, 3)), batch_size=2)
    assert flow.next().shape == (2, 8, 8, 3)
    keras.utils.save_img("one.png", np.ones((4, 4, 3)))
    assert load_img("one.png", grayscale=True).mode == "L"


def models() -> None:
    model = make_model()
    probable = model.predict_proba(x)
    np.testing.assert_array_equal(model.predict_classes(x), probable > 0.5)
    assert model.layers[0].output_shape == (None, 3)
    hidden = model.layers[0]
    np.testing.assert_array_equal(hidden.apply(x, training=True), hidden(x))
    refused(lambda: model.compile("sgd", "mse", target_tensors=[1]), "pass the targets to fit")
    ends = {"input": model.inputs, "output": model.outputs}
    refused(lambda: keras.Model(**ends), "Model(inputs=…, outputs=…)")
    layer = keras.layers.BatchNormalization(1, fused=True)
    assert keras.layers.BatchNormalization.from_config(layer.get_config()).axis == 1
    refused(lambda: keras.layers.BatchNormalization(renorm=True), "synchronized=True")
    model.compile("sgd", "mse", sample_weight_mode=None)


os.chdir(sys.argv[1])
sessions()  # First: numbers of threads can be set until the first operation.
for check in (
    names_of_tensorflow_1,
    backend,
    phases,
    generators,
    callbacks,
    files,
    optimizers,
    namespaces,
    models,
):
    check()
for line in found:
    print(line)
print("all idioms done")
