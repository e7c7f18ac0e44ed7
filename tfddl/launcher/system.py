"""What the launcher needs of the system that it runs on."""

from __future__ import annotations

import sys

from tfddl.errors import LaunchError


def require_linux(program: str) -> None:
    """Refuses systems on which worker processes can't be looked after.

    So that no worker outlives its launcher, nor is lost from sight, it takes prctl, memfd_create
    and /proc.

    Args:
        program: what was called, for the message.

    Raises:
        LaunchError: this is not Linux.
    """
    if not sys.platform.startswith("linux"):
        raise LaunchError(
            f"{program} needs Linux, and this is {sys.platform}. HINT: run the script itself, "
            "python train.py, for one worker"
        )
