"""`KerasModel`: a trained model that predicts the rows of a DataFrame."""

from __future__ import annotations

import contextlib
import decimal
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from pyspark.ml import Model
from pyspark.ml.param.shared import HasOutputCols

from tfddl._src.data.parquet_values import NULL_HINT
from tfddl._src.estimator import pickling
from tfddl._src.estimator.params import STRING, STRINGS, with_params
from tfddl._src.estimator.persistence import Persistent
from tfddl._src.estimator.training import (
    compile_for_one_process,
    model_inputs,
    row_shape,
    values_of,
)
from tfddl.errors import DataError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_INTEGERS = ("tinyint", "smallint", "int", "bigint")
# Rows of a call of the model.
_BATCH = 256
# Not a name that a user's column has.
_STRUCT = "tfddl_predictions"


@with_params(
    {
        "history": ("logs of all epochs", None),
        "model": ("the trained Keras model", None),
        "feature_columns": ("columns that are the inputs of the model", STRINGS),
        "label_columns": ("columns that it has learnt", STRINGS),
        "label_kinds": ("what these are", STRINGS),
        "custom_objects": ("classes and functions by name, for Keras", None),
        "compile_args": ("loss and metrics, as the arguments of compile", None),
        "run_id": ("the training", STRING),
    }
)
class KerasModel(Model, HasOutputCols, Persistent):
    """A Transformer of Spark ML that adds a model's predictions to a DataFrame.

    ``setOutputCols`` names the columns of the outputs; they are the labels' names with "__output"
    by default. A prediction of several values is a vector where the label is one, and an array of
    floats otherwise; one value is of the label's type, or a double where that is of integers.

    ``getRunId`` is the name of the run in the store.
    """

    # Under this name Spark's own files, such as those of a Pipeline, find the class again.
    __module__ = "tfddl.spark"
    _rounds_integers = False

    def __init__(  # noqa: PLR0913 - the parameters, by keyword
        self,
        *,
        history: dict[str, list[float]] | None = None,
        model: keras.Model | None = None,
        feature_columns: Sequence[str] | None = None,
        label_columns: Sequence[str] | None = None,
        label_kinds: Sequence[str] = (),
        custom_objects: dict[str, Any] | None = None,
        compile_args: dict[str, Any] | None = None,
        run_id: str | None = None,
    ) -> None:
        """A model that predicts; `KerasEstimator` makes it.

        Args:
            history: The logs.
            model: A Keras model.
            feature_columns: One for each of its inputs.
            label_columns: One for each output.
            label_kinds: Of each label "vector", "array" or Spark's name of a type of numbers; those
                that are missing are "double".
            custom_objects: For Keras.
            compile_args: With which a loaded model is compiled.
            run_id: The training.
        """
        super().__init__()
        given = {
            "history": history,
            "model": model,
            "feature_columns": feature_columns,
            "label_columns": label_columns,
            "label_kinds": list(label_kinds),
            "custom_objects": custom_objects,
            "compile_args": compile_args,
            "run_id": run_id,
        }
        self._setDefault(**dict.fromkeys(given))
        self._set(**given)
        if label_columns:
            self.setOutputCols([f"{name}__output" for name in label_columns])

    def getModel(self) -> keras.Model:
        """The trained model, compiled for one process, with the state of its optimizer."""
        return self.getOrDefault("model")

    def getHistory(self) -> dict[str, list[float]]:
        """The logs of all epochs."""
        return self.getOrDefault("history")

    def setOutputCols(self, value: Sequence[str]) -> KerasModel:
        """Names the columns of the predictions, one for each output of the model."""
        self._set(outputCols=list(value))
        return self

    def get_state(self) -> dict[str, Any]:
        """The parameters, and the model's optimizer with its state."""
        optimizer = getattr(self.getModel(), "optimizer", None)
        if optimizer is None:
            return super().get_state()
        compiled = {"optimizer": optimizer, "optimizer_values": values_of(optimizer)}
        return {**super().get_state(), **compiled}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_state` has returned, and compiles the model."""
        optimizer = state.pop("optimizer", None)
        values = state.pop("optimizer_values", [])
        super().set_state(state)
        if optimizer is not None:
            arguments = self.getOrDefault("compile_args") or {}
            compile_for_one_process(self.getModel(), optimizer, values, arguments)

    def _transform(self, df: DataFrame) -> DataFrame:
        from pyspark.ml.functions import array_to_vector, vector_to_array
        from pyspark.ml.linalg import VectorUDT
        from pyspark.sql import functions
        from pyspark.sql.types import StructField, StructType

        types = {field.name: field.dataType for field in df.schema.fields}
        features = self.getOrDefault("feature_columns")
        missing = [name for name in features if name not in types]
        if missing:
            raise DataError(
                f"there is no column {', '.join(map(repr, missing))}; the DataFrame has "
                f"{', '.join(map(repr, types))}"
            )
        outputs = self._outputs()
        data = pickling.dumps({"model": self.getModel()}, self.getOrDefault("custom_objects"))
        predict = functions.pandas_udf(
            make_predictor(data, features, [output.depth for output in outputs]),
            StructType([StructField(output.name, output.stored) for output in outputs]),
        )
        inputs = [
            vector_to_array(name) if isinstance(types[name], VectorUDT) else _input(name, types)
            for name in features
        ]
        # Other columns don't go through Python, and may be of any type.
        found = df.withColumn(_STRUCT, predict(*inputs))
        for output in outputs:
            value = functions.col(f"{_STRUCT}.`{output.name}`")
            if output.kind == "vector":
                value = array_to_vector(value)
            elif not output.depth and output.kind in _INTEGERS and self._rounds_integers:
                value = functions.rint(value).cast(output.kind)
            found = found.withColumn(output.name, value)
        return found.drop(_STRUCT)

    def _outputs(self) -> list[_Output]:
        names = self.getOutputCols()
        tensors = keras.tree.flatten(getattr(self.getModel(), "outputs", ()))
        shapes = [tuple(tensor.shape[1:]) for tensor in tensors] or [()] * len(names)
        if len(shapes) != len(names):
            raise DataError(
                f"the model has {len(shapes)} outputs, and there are {len(names)} columns for "
                f"them: {', '.join(names)}. HINT: setOutputCols"
            )
        kinds = [*self.getOrDefault("label_kinds"), *["double"] * len(names)]
        return [_Output(*args) for args in zip(names, shapes, kinds, strict=False)]


def _input(name: str, types: dict[str, Any]) -> Any:
    """A column of features; of arrays, one that fails where there are nulls within them.

    pandas has NaN in their place.
    """
    from pyspark.sql import functions
    from pyspark.sql.types import ArrayType

    column = functions.col(f"`{name}`")
    if not isinstance(types[name], ArrayType):
        return column
    text = f"DataError: column {name!r} has nulls. {NULL_HINT}"
    error = functions.raise_error(functions.lit(text)).cast(types[name])
    return functions.when(_has_nulls(column, types[name]), error).otherwise(column)


def _has_nulls(column: Any, kind: Any) -> Any:
    from pyspark.sql import functions
    from pyspark.sql.types import ArrayType

    if not isinstance(kind, ArrayType):
        return column.isNull()
    within = functions.exists(column, lambda value: _has_nulls(value, kind.elementType))
    return column.isNull() | within


class _Output:
    """A column of predictions."""

    def __init__(self, name: str, shape: tuple[int | None, ...], kind: str) -> None:
        from pyspark.sql.types import ArrayType, DoubleType, FloatType

        self.name = name
        self.kind = kind
        is_scalar = kind not in ("vector", "array") and set(shape) <= {1}
        # A vector has one dimension, whatever the model's output has.
        self.depth = 0 if is_scalar else 1 if kind == "vector" else max(1, len(shape))
        self.stored = DoubleType() if kind not in ("float", "array") else FloatType()
        for _ in range(self.depth):
            self.stored = ArrayType(self.stored)


def make_predictor(data: bytes, names: Sequence[str], depths: Sequence[int]) -> Any:
    """A function for `pandas_udf`: columns of features to one column of predictions per output.

    Args:
        data: The model, by `pickling`.
        names: Of the features.
        depths: Of each output, in a row: 0 is a number, 1 a list, 2 a list of lists.
    """
    import pandas as pd

    def predict(batches: Any) -> Any:
        with contextlib.suppress(RuntimeError):  # An earlier task of this process has done it.
            tf.config.set_visible_devices([], "GPU")
        model = pickling.loads(data)["model"]
        for batch in batches:
            series = batch if isinstance(batch, tuple) else (batch,)
            if not len(series[0]):
                yield pd.DataFrame({i: [] for i in range(len(depths))})
                continue
            outputs = _predict(model, [_values(s, n) for s, n in zip(series, names, strict=True)])
            yield pd.DataFrame({i: _column(v, depths[i]) for i, v in enumerate(outputs)})

    # Spark reads from these what the function is; one column comes without a tuple.
    batch_type = pd.Series if len(names) == 1 else tuple[pd.Series, ...]
    predict.__annotations__ = {
        "batches": Iterator[batch_type],  # type: ignore[valid-type]
        "return": Iterator[pd.DataFrame],
    }
    return predict


def _predict(model: keras.Model, features: list[np.ndarray]) -> list[np.ndarray]:
    """All rows, in batches of a bounded size."""
    tensors = model_inputs(model) or [None] * len(features)
    inputs = [_fit(values, tensor) for values, tensor in zip(features, tensors, strict=True)]
    found: list[list[np.ndarray]] = []
    for start in range(0, len(features[0]), _BATCH):
        part = [values[start : start + _BATCH] for values in inputs]
        predicted = model.predict_on_batch(part[0] if len(part) == 1 else part)
        found.append([np.asarray(values) for values in keras.tree.flatten(predicted)])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def _fit(values: np.ndarray, tensor: Any) -> np.ndarray:
    if tensor is None:
        return values.astype(keras.config.floatx()) if values.dtype == np.float64 else values
    shape = row_shape(values.shape[1:], tensor.shape[1:])
    return values.astype(tensor.dtype).reshape(len(values), *shape)


def _values(series: Any, name: str) -> np.ndarray:
    if series.isna().any():
        raise DataError(f"column {name!r} has {series.isna().sum()} nulls. {NULL_HINT}")
    return _dense(series.to_numpy())


def _dense(values: Any) -> np.ndarray:
    """Of arrays within arrays, as Arrow's lists become them, and of decimals."""
    array = np.asarray(values)
    if array.dtype != object:
        return array
    if isinstance(array[0], decimal.Decimal):
        return array.astype(np.float64)
    return np.stack([_dense(value) for value in array])


def _column(values: np.ndarray, depth: int) -> Any:
    rows = values.reshape(len(values), -1)
    if depth == 0 and rows.shape[1] != 1:
        raise DataError(
            f"a prediction has the shape {values.shape[1:]}; expected one number, as the label is "
            "one and the model doesn't tell the shape of its output. HINT: a functional or "
            "Sequential model, or a label that is an array or a vector"
        )
    if depth < 2:
        return rows[:, 0].astype(np.float64) if depth == 0 else rows.tolist()
    return values.tolist()
