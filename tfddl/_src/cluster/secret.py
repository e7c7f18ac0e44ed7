"""The secret that a launcher gives all workers of a job, and nobody else."""

from __future__ import annotations

from collections.abc import Mapping

from tfddl.errors import ClusterError

SECRET = "TFDDL_SECRET"
"""The variable that has it: hexadecimal, the same on all workers. `tfddlrun` makes one for each
start. It is in the environment of processes of this user only, and on no command line."""

_LEAST_BYTES = 16


def read_secret(environ: Mapping[str, str]) -> bytes:
    """Reads the job's secret; b"" where there is none.

    Raises:
        ClusterError: TFDDL_SECRET is no hexadecimal number, or a short one. The message doesn't
            show it.
    """
    text = environ.get(SECRET, "").strip()
    try:
        secret = bytes.fromhex(text) if text.isascii() else None
    except ValueError:
        secret = None
    if secret is None or 0 < len(secret) < _LEAST_BYTES:
        raise ClusterError(
            f"{SECRET} is {len(text)} characters that aren't a secret; at least "
            f"{2 * _LEAST_BYTES} hexadecimal digits are expected, the same on all workers. HINT: "
            f"{SECRET}=$(openssl rand -hex 32)"
        )
    return secret
