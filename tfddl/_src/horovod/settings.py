"""Horovod's environment variables, which `horovodrun` sets from its flags, too."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TypeVar

from tfddl.errors import StartError

_Default = TypeVar("_Default", float, None)

_DYNAMIC = "DYNAMIC"
"""The value of HOROVOD_TIMELINE where the script will call `start_timeline`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The variables that have an effect here; all others are ignored."""

    stall_warning_s: float = 60.0
    """Seconds after which ranks that are missing in an operation are logged; 0 is never."""

    stall_shutdown_s: float | None = None
    """Seconds after which such an operation fails; 0 is never; None as in `tfddl.init`: never for a
    rank that is busy."""

    timeline: str | None = None
    """The file of a timeline from the start of the job on."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Settings":
        """The settings of an environment.

        Args:
            environ: HOROVOD_STALL_CHECK_DISABLE, HOROVOD_STALL_CHECK_TIME_SECONDS,
                HOROVOD_STALL_SHUTDOWN_TIME_SECONDS and HOROVOD_TIMELINE are read.

        Raises:
            StartError: One of them is no number of seconds.
        """
        warning_s = _seconds(environ, "HOROVOD_STALL_CHECK_TIME_SECONDS", cls.stall_warning_s)
        shutdown_s = _seconds(environ, "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", None)
        is_off = environ.get("HOROVOD_STALL_CHECK_DISABLE", "0") not in ("", "0")
        timeline = environ.get("HOROVOD_TIMELINE", "")
        return cls(
            stall_warning_s=0.0 if is_off else warning_s,
            stall_shutdown_s=0.0 if is_off else shutdown_s,
            timeline=None if timeline in ("", _DYNAMIC) else timeline,
        )


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
