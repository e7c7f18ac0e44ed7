"""The secret that a launcher gives to all workers of a job, and to nobody else."""

from __future__ import annotations

from collections.abc import Mapping

from tfddl.errors import ClusterError

SECRET = "TFDDL_SECRET"
"""The variable: hexadecimal, the same on all workers. `tfddlrun` makes a new secret for each start.
Other users can read command lines (/proc/PID/cmdline), and not environments: so it is never in the
former."""

_MIN_BYTES = 16


def read_secret(environ: Mapping[str, str]) -> bytes:
    """Reads the job's secret; b"" where there is none.

    Raises:
        ClusterError: TFDDL_SECRET isn't hexadecimal, or too short. The message doesn't show it.
    """
    text = environ.get(SECRET, "").strip()
    try:
        secret = bytes.fromhex(text) if text.isascii() else None
    except ValueError:
        secret = None
    if secret is None or 0 < len(secret) < _MIN_BYTES:
        raise ClusterError(
            f"{SECRET} is {len(text)} characters that aren't a secret; at least "
            f"{2 * _MIN_BYTES} hexadecimal digits are expected, the same on all workers. HINT: "
            f"{SECRET}=$(openssl rand -hex 32)"
        )
    return secret
