"""Horovod's environment variables, which `horovodrun` sets from its flags, too."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TypeVar

from tfddl.errors import StartError

_Default = TypeVar("_Default", float, None)

_WITHOUT_EFFECT = (
    "HOROVOD_CYCLE_TIME",
    "HOROVOD_CACHE_CAPACITY",
    "HOROVOD_AUTOTUNE",
    "HOROVOD_AUTOTUNE_LOG",
    "HOROVOD_HIERARCHICAL_ALLREDUCE",
    "HOROVOD_HIERARCHICAL_ALLGATHER",
    "HOROVOD_TORUS_ALLREDUCE",
    "HOROVOD_NUM_NCCL_STREAMS",
    "HOROVOD_TIMELINE_MARK_CYCLES",
    "HOROVOD_THREAD_AFFINITY",
)

_DYNAMIC = "DYNAMIC"
"""The value of HOROVOD_TIMELINE where the script will call `start_timeline`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The variables that have an effect here, and which of the others are set."""

    stall_warning_s: float = 60.0
    """Seconds after which ranks that are missing in an operation are logged; 0 is never."""

    stall_shutdown_s: float | None = None
    """Seconds after which such an operation fails; 0 is never; None as in `tfddl.init`: never for a
    rank that is busy."""

    timeline: str | None = None
    """The file of a timeline from the start of the job on."""

    fusion_bytes: int | None = None
    """How many bytes travel together; None leaves it to tfddl."""

    dynamic_process_sets: bool = False
    """Whether process sets may be added and removed while the job runs."""

    without_effect: tuple[str, ...] = ()
    """Variables that are set and change nothing here: how Horovod's engine is tuned."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Settings":
        """The settings of an environment.

        Args:
            environ: HOROVOD_STALL_CHECK_DISABLE, HOROVOD_STALL_CHECK_TIME_SECONDS,
                HOROVOD_STALL_SHUTDOWN_TIME_SECONDS, HOROVOD_TIMELINE, HOROVOD_FUSION_THRESHOLD and
                HOROVOD_DYNAMIC_PROCESS_SETS are read.

        Raises:
            StartError: One of them is no number of seconds, or of bytes.
        """
        warning_s = _seconds(environ, "HOROVOD_STALL_CHECK_TIME_SECONDS", cls.stall_warning_s)
        shutdown_s = _seconds(environ, "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", None)
        is_off = _is_on(environ, "HOROVOD_STALL_CHECK_DISABLE")
        timeline = environ.get("HOROVOD_TIMELINE", "")
        return cls(
            fusion_bytes=_bytes(environ, "HOROVOD_FUSION_THRESHOLD"),
            without_effect=tuple(name for name in _WITHOUT_EFFECT if environ.get(name)),
            dynamic_process_sets=_is_on(environ, "HOROVOD_DYNAMIC_PROCESS_SETS"),
            stall_warning_s=0.0 if is_off else warning_s,
            stall_shutdown_s=0.0 if is_off else shutdown_s,
            timeline=None if timeline in ("", _DYNAMIC) else timeline,
        )


def _bytes(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if text and not text.isdecimal():
        raise StartError(f"{name} is {text!r}; expected a number of bytes, 0 to fuse nothing.")
    return int(text) if text else None


def _is_on(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "0") not in ("", "0")


def _seconds(environ: Mapping[str, str], name: str, default: _Default) -> float | _Default:
    text = environ.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise StartError(f"{name} is {text!r}; expected seconds, 0 for never.")
    return value
