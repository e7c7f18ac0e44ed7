"""What Horovod's users set in the environment, and `horovodrun` for them."""

import dataclasses
import math
from collections.abc import Mapping
from typing import TypeVar

from tfddl.errors import StartError

_Default = TypeVar("_Default", float, None)

_DYNAMIC = "DYNAMIC"
"""What HOROVOD_TIMELINE is where `start_timeline` will be called."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings that have an effect here; all others are left alone."""

    stall_warning_s: float = 60.0
    """After how long to name ranks that haven't come to an operation; 0 is never."""

    stall_shutdown_s: float | None = None
    """After how long such an operation fails; 0 is never. None is never for a rank that is busy,
    and after a while where ranks wait for each other: see `tfddl.init`."""

    timeline: str | None = None
    """The file of a timeline that begins with the job."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "Settings":
        """Reads them.

        Args:
            environ: The environment: HOROVOD_STALL_CHECK_DISABLE, HOROVOD_STALL_CHECK_TIME_SECONDS,
                HOROVOD_STALL_SHUTDOWN_TIME_SECONDS and HOROVOD_TIMELINE count.

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
        raise StartError(f"{name} is {text!r}; seconds are expected, 0 for never.")
    return value
