"""The shape of Horovod's examples/spark/keras: a store, a SparkBackend, an estimator."""

import sys

import numpy as np
import pyspark.sql.types as T
import tensorflow as tf
from pyspark import SparkConf
from pyspark.ml.feature import OneHotEncoder
from pyspark.ml.linalg import Vectors
from pyspark.sql import SparkSession
from pyspark.sql.functions import udf
from tensorflow import keras
from tensorflow.keras.layers import Dense, Flatten
from tensorflow.keras.models import Sequential

import horovod.spark.keras as hvd
from horovod.spark.common.backend import SparkBackend
from horovod.spark.common.store import Store


def hits(y_true, y_pred):
    return tf.cast(tf.equal(tf.argmax(y_true, -1), tf.argmax(y_pred, -1)), tf.float32)


if __name__ == "__main__":
    conf = SparkConf().setAppName("keras_spark").set("spark.ui.enabled", "false")
    conf.setMaster("local[2]")
    spark = SparkSession.builder.config(conf=conf).getOrCreate()
    store = Store.create(sys.argv[1])

    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 16))
    label = x[:, :3].argmax(axis=1)
    rows = [(Vectors.dense(v), float(n)) for v, n in zip(x, label)]
    df = spark.createDataFrame(rows, ["features", "label"])
    encoder = OneHotEncoder(inputCols=["label"], outputCols=["label_vec"], dropLast=False)
    train_df = encoder.fit(df).transform(df)

    model = Sequential()
    model.add(Flatten(input_shape=(4, 4, 1)))
    model.add(Dense(3, activation="softmax"))
    optimizer = keras.optimizers.Adam(lr=0.02)
    checkpoint = keras.callbacks.ModelCheckpoint("dummy", monitor="loss", save_best_only=True)

    backend = SparkBackend(
        num_proc=2, stdout=sys.stdout, stderr=sys.stderr, prefix_output_with_timestamp=True
    )
    estimator = hvd.KerasEstimator(
        backend=backend,
        store=store,
        model=model,
        optimizer=optimizer,
        loss=keras.losses.categorical_crossentropy,
        metrics=["accuracy", hits],
        custom_objects={"hits": hits},
        feature_cols=["features"],
        label_cols=["label_vec"],
        batch_size=16,
        epochs=4,
        random_seed=1,
        inmemory_cache_all=True,
        checkpoint_callback=checkpoint,
        verbose=1,
        callbacks=[keras.callbacks.TensorBoard(profile_batch=5)],
    )
    keras_model = estimator.fit(train_df).setOutputCols(["label_prob"])

    pred_df = keras_model.transform(train_df)
    argmax = udf(lambda v: float(np.argmax(v)), returnType=T.DoubleType())
    pred_df = pred_df.withColumn("label_pred", argmax(pred_df.label_prob))
    right = pred_df.filter(pred_df.label_pred == pred_df.label).count()
    history = keras_model.getHistory()
    print(sorted(history), [round(float(n), 2) for n in history["hits"]])
    print(
        "learning rate", round(float(np.asarray(keras_model.getModel().optimizer.learning_rate)), 4)
    )
    print("right", right, dict(pred_df.dtypes)["label_prob"])
    spark.stop()
