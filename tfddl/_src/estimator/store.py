"""Directories that the driver and all executors reach: data, checkpoints and logs of trainings."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tfddl.errors import LaunchError, UnsupportedError

if TYPE_CHECKING:
    import pyarrow.fs

_DBFS = ("dbfs:/", "/dbfs/", "file:///dbfs/")


class Store:
    """Where a training keeps its files; driver and executors reach it under the same path.

    Below its prefix are ``intermediate_train_data.RUN`` and ``intermediate_val_data.RUN``, which
    are removed when a `fit` has succeeded, as are the checkpoints in ``runs/RUN``, and
    ``runs/RUN/logs``. Paths are URIs as Spark has them, without escapes (``file:///my data``).
    """

    def __init__(  # noqa: PLR0913 - Horovod's signature
        self,
        prefix_path: str | os.PathLike[str] | None = None,
        train_path: str | None = None,
        val_path: str | None = None,
        test_path: str | None = None,
        runs_path: str | None = None,
        save_runs: bool = True,
        **options: Any,
    ) -> None:
        """Names the directories; makes none.

        Args:
            prefix_path: A directory, or a URI that both Spark and `pyarrow.fs` reach.
            train_path: The training data that `fit_on_parquet` reads; None is
                ``intermediate_train_data`` below the prefix.
            val_path: Its validation data.
            test_path: Is only kept.
            runs_path: Of checkpoints and logs; None is ``runs`` below the prefix.
            save_runs: False keeps neither: a training that fails begins anew.
            **options: Others of Horovod's stores must not be given.

        Raises:
            UnsupportedError: An option that isn't one of these; no prefix, where it is needed.
        """
        if options:
            raise UnsupportedError(
                f"{type(self).__name__} has no option {', '.join(sorted(options))}; expected paths "
                "and save_runs. HINT: credentials and addresses of file systems are read from "
                "their own environment variables and files, by Spark and by pyarrow.fs"
            )
        self._prefix = None if prefix_path is None else self.to_uri(os.fspath(prefix_path))
        self._train = self._choose(train_path, "intermediate_train_data")
        self._val = self._choose(val_path, "intermediate_val_data")
        self._test = self._choose(test_path, "intermediate_test_data")
        self._runs = self._choose(runs_path, "runs")
        self._save_runs = save_runs

    @staticmethod
    def create(prefix_path: str | os.PathLike[str], **options: Any) -> Store:
        """The store for a path: of ``hdfs://`` an `HDFSStore`, of ``dbfs:/`` a `DBFSLocalStore`.

        Args:
            prefix_path: As of the class.
            **options: The same.
        """
        path = os.fspath(prefix_path)
        if path.startswith("hdfs://"):
            return HDFSStore(path, **options)
        kind = DBFSLocalStore if path.startswith(_DBFS) else FilesystemStore
        return kind(path, **options)

    def to_uri(self, path: str) -> str:
        """The URI of a path, by which Spark and pyarrow mean the same."""
        if "://" in path:
            return path.rstrip("/")
        return f"file://{os.path.abspath(path)}"

    def get_train_data_path(self, idx: object = None) -> str:
        """Of the training data of `fit_on_parquet`, or of the run ``idx``."""
        return self._found(self._train, "train_path", idx)

    def get_val_data_path(self, idx: object = None) -> str:
        """Of the validation data, as the training data."""
        return self._found(self._val, "val_path", idx)

    def get_test_data_path(self, idx: object = None) -> str:
        """Of test data, which tfddl neither reads nor writes."""
        return self._found(self._test, "test_path", idx)

    def saving_runs(self) -> bool:
        """Whether checkpoints and logs are kept."""
        return self._save_runs

    def get_runs_path(self) -> str:
        """The directory of all runs."""
        return self._found(self._runs, "runs_path")

    def get_run_path(self, run_id: str) -> str:
        """The directory of one run."""
        return posixpath.join(self.get_runs_path(), run_id)

    def get_checkpoint_path(self, run_id: str) -> str | None:
        """Of a run's checkpoints; None where they aren't kept."""
        return posixpath.join(self.get_run_path(run_id), "checkpoints") if self._save_runs else None

    def get_logs_path(self, run_id: str) -> str | None:
        """Of a run's logs for TensorBoard; None where they aren't kept."""
        if not self._save_runs:
            return None
        return posixpath.join(self.get_run_path(run_id), self.get_logs_subdir())

    def get_logs_subdir(self) -> str:
        """The name of the directory of logs in that of a run."""
        return "logs"

    def exists(self, path: str) -> bool:
        """Whether there is a file or directory."""
        from pyarrow import fs

        filesystem, inner = _open(path)
        return bool(filesystem.get_file_info(inner).type != fs.FileType.NotFound)

    def read(self, path: str) -> bytes:
        """The content of a file."""
        filesystem, inner = _open(path)
        with filesystem.open_input_stream(inner) as file:
            return bytes(file.read())

    def write_text(self, path: str, text: str) -> None:
        """Writes a file, in UTF-8."""
        filesystem, inner = _open(path)
        filesystem.create_dir(posixpath.dirname(inner), recursive=True)
        with filesystem.open_output_stream(inner) as file:
            file.write(text.encode())

    def remove(self, paths: Sequence[str]) -> None:
        """Removes directories with all that is in them; they may be missing."""
        for path in paths:
            if self.exists(path):
                filesystem, inner = _open(path)
                filesystem.delete_dir(inner)

    def _choose(self, given: str | None, name: str) -> str | None:
        if given is not None:
            return self.to_uri(given)
        return None if self._prefix is None else posixpath.join(self._prefix, name)

    def _found(self, path: str | None, name: str, idx: object = None) -> str:
        if path is None:
            raise UnsupportedError(
                f"{type(self).__name__} has neither prefix_path nor {name}. HINT: "
                f"{type(self).__name__}('/a/directory')"
            )
        return path if idx is None else f"{path}.{idx}"


class FilesystemStore(Store):
    """A directory that is mounted on all hosts, or a URI such as ``s3://`` and ``gs://``."""


class LocalStore(FilesystemStore):
    """The same, under Horovod's older name."""


class HDFSStore(Store):
    """A directory of HDFS: ``hdfs://host:8020/user/me``, or ``/user/me`` of the default one.

    Checkpoints need a TensorFlow that has hdfs:// (tensorflow-io); otherwise a warning says that a
    training that fails begins anew.
    """

    def to_uri(self, path: str) -> str:
        """With hdfs:// in front."""
        return path.rstrip("/") if "://" in path else f"hdfs://{posixpath.normpath(path)}"


class DBFSLocalStore(Store):
    """A directory of Databricks, by its mount: ``dbfs:/path`` is ``/dbfs/path``."""

    def to_uri(self, path: str) -> str:
        """With file:///dbfs in front."""
        for prefix in _DBFS:
            if path.startswith(prefix):
                return f"file:///dbfs/{path.removeprefix(prefix).strip('/')}"
        raise UnsupportedError(f"{path!r} isn't on DBFS; expected dbfs:/… or /dbfs/…")


def local_path(uri: str) -> str:
    """The path that a local URI of a store means; other URIs as they are."""
    # Spark's have no escapes; those of pyarrow.fs and pathlib have: "%20" for a space.
    return uri.removeprefix("file://") if uri.startswith("file:///") else uri


def _open(path: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The file system of a URI, and the path in it.

    Raises:
        LaunchError: pyarrow isn't installed.
        UnsupportedError: It has no such file system.
    """
    try:
        from pyarrow import ArrowInvalid, fs
    except ImportError as error:
        raise LaunchError(
            "tfddl.spark needs pyarrow, which can't be imported here. HINT: pip install "
            f"'tfddl[spark]' ({error})"
        ) from None
    inner = local_path(path)
    if "://" not in inner:
        return fs.LocalFileSystem(), inner
    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(path)
    except ArrowInvalid as error:
        raise UnsupportedError(
            f"pyarrow.fs can't open {path!r}: {error}. HINT: expected file://, hdfs://, s3:// or "
            "gs://, and no spaces in the names of remote directories"
        ) from error
    return found
