"""The names under which scripts reach Keras' modules: three sets of module objects."""

PREFIXES = ("keras", "tensorflow.keras", "keras._tf_keras.keras")
"""`import keras`; `import tensorflow.keras`; and what the attribute `tf.keras` loads (named in
tensorflow/python/util/lazy_loader.py). The last two are loaded from the same files, once each."""
