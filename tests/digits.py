"""Pictures of digits, drawn here: a small set that models learn in a few steps."""

from dataclasses import dataclass

import numpy as np

# Of each digit, seven rows of five pixels.
_GLYPHS = (
    *(b"\x0e\x11\x13\x15\x19\x11\x0e", b"\x04\x0c\x04\x04\x04\x04\x0e"),
    *(b"\x0e\x11\x01\x02\x04\x08\x1f", b"\x1f\x02\x04\x02\x01\x11\x0e"),
    *(b"\x02\x06\x0a\x12\x1f\x02\x02", b"\x1f\x10\x1e\x01\x01\x11\x0e"),
    *(b"\x06\x08\x10\x1e\x11\x11\x0e", b"\x1f\x01\x02\x04\x08\x08\x08"),
    *(b"\x0e\x11\x11\x0e\x11\x11\x0e", b"\x0e\x11\x11\x0f\x01\x02\x0c"),
)


@dataclass(frozen=True)
class Digits:
    images: np.ndarray
    """Shape (n, 8, 8), 0..16: more than 8 where there is ink."""

    target: np.ndarray
    """Shape (n,): which digit it is."""

    @property
    def data(self) -> np.ndarray:
        """The images, each as one row."""
        return self.images.reshape(-1, 64)


def load_digits(n: int = 1797) -> Digits:
    """The same in every process; each lies one pixel higher or lower, further left or right."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 10, n)
    rows = np.frombuffer(b"".join(_GLYPHS), np.uint8).reshape(10, 7, 1)
    ink = np.zeros((n, 8, 8), bool)
    for image, digit, (down, right) in zip(ink, target, rng.integers(0, 2, (n, 2)), strict=True):
        image[down : down + 7, 1 + right : 6 + right] = np.unpackbits(rows[digit], axis=1)[:, 3:]
    images = np.where(ink, rng.uniform(9, 16, ink.shape), rng.uniform(0, 7, ink.shape))
    return Digits(images, target)
