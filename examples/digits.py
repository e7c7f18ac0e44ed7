"""scikit-learn's handwritten digits: 1797 images of 8 x 8 pixels, for all examples here."""

import numpy as np
from sklearn.datasets import load_digits

NUM_TRAIN = 1500


def load() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Training and test data: images float32 (n, 8, 8, 1) from 0 to 1, labels int32 (n,)."""
    digits = load_digits()
    images = (digits.images[..., np.newaxis] / 16).astype("float32")
    labels = digits.target.astype("int32")
    train, test = slice(None, NUM_TRAIN), slice(NUM_TRAIN, None)
    return (images[train], labels[train]), (images[test], labels[test])
