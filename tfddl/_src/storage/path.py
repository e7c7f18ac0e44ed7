"""Paths that TensorFlow reaches by `tf.io.gfile`: gs://, and what plugins add (s3://, hdfs://).

A `RemotePath` has the part of `pathlib.Path` that checkpoints need, and raises OSError as that
does. pathlib itself can't hold a URL: it makes ``gs:/bucket`` of ``gs://bucket``.

TensorFlow's client for Google's store tries again, with growing pauses, where the store is busy
(GCS_RETRY_CONFIG_MAX_RETRIES); an error here is what is left after that.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfddl.errors import UnsupportedError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_COLLAPSED = re.compile(r"(?:abfs|az|file|gs|hdfs|ram|s3|s3a|viewfs):/(?!/)")

_HINTS: dict[type[tf.errors.OpError], str] = {
    tf.errors.PermissionDeniedError: "give rank 0's process credentials that may list, read, write "
    "and delete there (for gs://, GOOGLE_APPLICATION_CREDENTIALS).",
    tf.errors.UnauthenticatedError: "give rank 0's process credentials (for gs://, "
    "GOOGLE_APPLICATION_CREDENTIALS).",
    tf.errors.UnimplementedError: "this TensorFlow has no such file system (see "
    "tf.io.gfile.get_registered_schemes()); install and import the plugin that has it, such as "
    "tensorflow-io, or mount the store and give the directory.",
    tf.errors.NotFoundError: "look whether bucket and credentials are right.",
}
_HINT = "look at the store and the network; the same command resumes."


class RemoteError(OSError):
    """What a store answered, with the path and a hint in its text."""


class RemoteNotFoundError(RemoteError, FileNotFoundError):
    """There is no such file or bucket in the store."""


def make_path(path: str | os.PathLike[str]) -> Path | RemotePath:
    """The path that a user means: of a URL a `RemotePath`, except for ``file:///directory``.

    Raises:
        UnsupportedError: It is a URL that went through `pathlib`, and has lost a slash by that.
    """
    text = os.fspath(path)
    if _COLLAPSED.match(text):
        raise UnsupportedError(
            f"The path is {text!r}, a URL that has lost a slash, as pathlib.Path does it; it would "
            "be a directory on this machine. HINT: give the URL as a string."
        )
    found = _URL.fullmatch(text)
    if found is None:
        return Path(text)
    if found[1].lower() == "file" and found[2].startswith("/"):
        return Path(found[2])
    return RemotePath(text.rstrip("/"))


@dataclasses.dataclass(frozen=True)
class RemotePath:
    """A file or directory in a store."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemotePath:
        """A file in this directory."""
        return RemotePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """What comes after the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return self.name.rpartition(".")[0] or self.name

    def with_name(self, name: str) -> RemotePath:
        """Another file in the same directory."""
        return RemotePath(f"{self.url.rpartition('/')[0]}/{name}")

    def exists(self) -> bool:
        """Whether there is such a file or directory."""
        with self._errors():
            return bool(tf.io.gfile.exists(self.url))

    def is_dir(self) -> bool:
        """Whether there is such a directory: in an object store, objects whose names begin so."""
        with self._errors():
            return bool(tf.io.gfile.isdir(self.url))

    def make_directory(self) -> None:
        """Makes the directory and those above it, where the store knows directories."""
        with self._errors():
            tf.io.gfile.makedirs(self.url)

    def iterdir(self) -> Iterator[RemotePath]:
        """What is in the directory, in no order."""
        with self._errors():
            names = tf.io.gfile.listdir(self.url)
        return (self / name.rstrip("/") for name in names)  # Google's directories end in a slash.

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """What is in the directory and matches a pattern without a slash."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the file."""
        try:
            with self._errors():
                tf.io.gfile.remove(self.url)
        except RemoteNotFoundError:
            if not missing_ok:
                raise

    def rename(self, target: RemotePath) -> RemotePath:
        """Renames the file, over what is there; object stores copy it, then remove the old one."""
        with self._errors():
            tf.io.gfile.rename(self.url, target.url, overwrite=True)
        return target

    def size(self) -> int:
        """The number of bytes of the file."""
        with self._errors():
            return int(tf.io.gfile.stat(self.url).length)

    def read_bytes(self) -> bytes:
        """The whole content."""
        with self.open("rb") as file:
            return bytes(file.read())

    def write_bytes(self, data: bytes) -> None:
        """Writes a file, over what is there."""
        with self.open("wb") as file:
            file.write(data)

    @contextmanager
    def open(self, mode: str) -> Iterator[Any]:
        """A `tf.io.gfile.GFile`; stores upload what is written when it is closed.

        Args:
            mode: "rb" or "wb".

        Raises:
            RemoteError: Also in the body, and at its end, where the upload fails.
        """
        with self._errors(), tf.io.gfile.GFile(self.url, mode) as file:
            yield file

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except tf.errors.OpError as error:
            kind = type(error)
            known = RemoteNotFoundError if kind is tf.errors.NotFoundError else RemoteError
            said = " ".join(error.message.split())  # Google's client has a line per cause.
            raise known(
                f"{self.url}: {kind.__name__.removesuffix('Error')}: {said}. HINT: "
                f"{_HINTS.get(kind, _HINT)}"
            ) from error
