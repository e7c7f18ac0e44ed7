"""`write().save(path)` and `load(path)`, also within a Pipeline of Spark ML."""

from __future__ import annotations

from typing import Any

from pyspark.ml.util import (
    DefaultParamsReader,
    DefaultParamsWriter,
    MLReadable,
    MLReader,
    MLWritable,
    MLWriter,
)

from tfddl._src.estimator import pickling


class Persistent(MLWritable, MLReadable):
    """What can be saved where Spark can write; loading it runs what is in it, as any pickle."""

    def write(self) -> MLWriter:
        """A writer: ``write().overwrite().save(path)``."""
        return _Writer(self)

    def get_state(self) -> dict[str, Any]:
        """What is saved: the values of parameters, by name."""
        return {param.name: value for param, value in self._paramMap.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_state` has returned."""
        self._set(**state)

    @classmethod
    def read(cls) -> MLReader:
        """A reader: ``read().load(path)``."""
        return _Reader(cls)


class _Writer(MLWriter):
    def __init__(self, instance: Any) -> None:
        super().__init__()
        self._instance = instance

    def saveImpl(self, path: str) -> None:
        """Metadata as Spark's own, in which the class is; state as a pickle in Parquet."""
        state = self._instance.get_state()
        data = bytearray(pickling.dumps(state, state.get("custom_objects")))
        session = self.sparkSession
        DefaultParamsWriter.saveMetadata(self._instance, path, session.sparkContext, paramMap={})
        rows = session.createDataFrame([(data,)], "data binary")
        rows.coalesce(1).write.parquet(f"{path}/state")


class _Reader(MLReader):
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self._kind = kind

    def load(self, path: str) -> Any:
        session = self.sparkSession
        metadata = DefaultParamsReader.loadMetadata(path, session.sparkContext)
        found = self._kind()
        found._resetUid(metadata["uid"])
        (row,) = session.read.parquet(f"{path}/state").collect()
        found.set_state(pickling.loads(bytes(row["data"])))
        return found
