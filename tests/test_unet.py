"""The U-Net: its layers, what it refuses."""

from collections.abc import Iterator

import keras
import numpy as np
import pytest

from tfddl.errors import ShardingError
from tfddl.models import unet


def _count(model: keras.Model, kind: type) -> int:
    return sum(isinstance(layer, kind) for layer in model.layers)


@pytest.mark.parametrize(
    ("shape", "filters"),
    [
        ((32, 32, 3), (4, 8, 16)),
        ((16, 48, 1), (4, 8)),
        ((7, 5, 3), (4,)),  # one level halves nothing
    ],
)
def test_gives_a_probability_per_pixel(
    shape: tuple[int, int, int], filters: tuple[int, ...]
) -> None:
    model = unet(shape, filters=filters)
    outputs = np.asarray(model(np.zeros((2, *shape), np.float32)))
    assert outputs.shape == (2, *shape[:2], 1)
    assert outputs.dtype == np.float32
    assert np.all((outputs > 0) & (outputs < 1))


def test_has_the_layers_of_each_level() -> None:
    filters = (4, 6, 8)
    model = unet((16, 16, 3), filters=filters)
    convolutions = [layer for layer in model.layers if type(layer) is keras.layers.Conv2D]
    assert [layer.filters for layer in convolutions] == [4, 4, 6, 6, 8, 8, 6, 6, 4, 4, 1]
    # Only the last one isn't followed by a normalization, whose own offset stands for the bias.
    assert [layer.use_bias for layer in convolutions] == [False] * 10 + [True]
    assert _count(model, keras.layers.BatchNormalization) == 10
    assert _count(model, keras.layers.ReLU) == 10
    assert _count(model, keras.layers.MaxPooling2D) == 2
    assert _count(model, keras.layers.Concatenate) == 2
    ups = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2DTranspose)]
    assert [layer.filters for layer in ups] == [6, 4]


def test_scale_and_momentum_reach_the_layers() -> None:
    model = unet((8, 8, 1), filters=(2, 2), scale=1 / 255, momentum=0.8)
    assert model.get_layer("rescale").scale == 1 / 255
    assert model.get_layer("bottom_norm1").momentum == 0.8


@pytest.fixture
def _mixed_precision() -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.usefixtures("_mixed_precision")
def test_probabilities_are_float32_under_mixed_precision() -> None:
    model = unet((8, 8, 1), filters=(2, 2))
    assert model.get_layer("bottom_conv1").compute_dtype == "bfloat16"
    assert model.output.dtype == "float32"


@pytest.mark.parametrize(
    ("shape", "filters", "message"),
    [
        (
            (96, 100, 3),
            (8, 16, 32, 64),
            r"The images are 96 x 100, but a U-Net of 4 levels halves them 3 times: height and "
            r"width must be multiples of 8\. HINT: choose another image size, or fewer levels",
        ),
        ((0, 8, 3), (8,), r"The images are 0 x 8"),
        ((8, 8, 3), (), r"filters are \[\]; expected one positive number for each level"),
        ((8, 8, 3), (8, 0), r"filters are \[8, 0\]; expected one positive number"),
    ],
)
def test_refuses(shape: tuple[int, int, int], filters: tuple[int, ...], message: str) -> None:
    with pytest.raises(ShardingError, match=message):
        unet(shape, filters=filters)
