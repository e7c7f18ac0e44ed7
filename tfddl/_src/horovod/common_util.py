"""The helpers of horovod/common/util.py. Importing this loads no TensorFlow."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from tfddl.errors import UnsupportedError

_FRAMEWORKS = ("tensorflow", "keras")


def extension_available(ext_base_name: str, verbose: bool = False) -> bool:
    """Whether there is Horovod for a framework: "tensorflow", and not "torch" or "mxnet"."""
    return ext_base_name in _FRAMEWORKS


def check_extension(ext_name: str, ext_env_var: str, pkg_path: str, *args: str) -> None:
    """Checks nothing: there is no extension that could be missing."""


def check_installed_version(name: str, version: str, exception: Any = None) -> None:
    """Checks nothing: nothing is compiled for a version of TensorFlow."""


def gpu_available(ext_base_name: str, verbose: bool = False) -> bool:
    """Whether TensorFlow sees a GPU."""
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def mpi_built(verbose: bool = False) -> bool:
    """False: there is no MPI."""
    return False


def gloo_built(verbose: bool = False) -> bool:
    """True: collectives work without MPI, though they aren't Gloo's."""
    return True


def nccl_built(verbose: bool = False) -> bool:
    """Whether TensorFlow was built for NVIDIA's GPUs."""
    import tensorflow as tf

    return bool(tf.test.is_built_with_cuda())


def ddl_built(verbose: bool = False) -> bool:
    """False: there is no IBM DDL."""
    return False


def ccl_built(verbose: bool = False) -> bool:
    """False: there is no Intel oneCCL."""
    return False


@contextmanager
def env(**kwargs: str | None) -> Iterator[None]:
    """Sets environment variables for the body of a ``with``; those that are None stay."""
    with mock.patch.dict(os.environ, {k: v for k, v in kwargs.items() if v is not None}):
        yield


def num_rank_is_power_2(num_rank: int) -> bool:
    """Whether a number of ranks is a power of 2."""
    return num_rank > 0 and num_rank & (num_rank - 1) == 0


def split_list(l: Sequence[Any], n: int) -> list[Sequence[Any]]:  # noqa: E741 - Horovod's name
    """Cuts a list into ``n`` parts, the first ones longer by one where it doesn't divide."""
    quotient, rest = divmod(len(l), n)
    ends = [i * quotient + min(i, rest) for i in range(n + 1)]
    return [l[start:end] for start, end in zip(ends, ends[1:], strict=False)]


def is_iterable(x: Any) -> bool:
    """Whether ``iter(x)`` works."""
    try:
        iter(x)
    except TypeError:
        return False
    return True


def is_version_greater_equal_than(ver: str, target: str) -> bool:
    """Whether a version is at least another one.

    Args:
        ver: A version, such as "2.16.1-rc0".
        target: A version of three numbers.

    Raises:
        UnsupportedError: One of them isn't a version of that form; it is a `ValueError`.
    """
    if not isinstance(ver, str) or not isinstance(target, str):
        raise UnsupportedError(f"the versions are {ver!r} and {target!r}; they must be strings.")
    if not re.fullmatch(r"\d+\.\d+\.\d+", target):
        raise UnsupportedError(f"target is {target!r}; it must be major.minor.patch.")
    return _numbers(ver) >= _numbers(target)


def _numbers(version: str) -> tuple[int, int, int, bool]:
    """Comparable; a release candidate is before its release."""
    match = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?[.-]?(a|b|rc|dev)?", version)
    if match is None:
        raise UnsupportedError(f"ver is {version!r}; it must be a version such as 2.16.1.")
    major, minor, patch = (int(number or 0) for number in match.groups()[:3])
    return major, minor, patch, match[4] is None
