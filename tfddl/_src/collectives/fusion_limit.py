"""How many bytes may travel together, where a script has asked for it."""

from tfddl._src.runtime import PerRuntime, Runtime

_LIMIT: PerRuntime[dict[str, int]] = PerRuntime(lambda _: {})
"""What a script has asked for, as "bytes"."""


def limit_fusion(num_bytes: int) -> None:
    """Sets how many bytes travel together from now on, the same on all ranks.

    Ranks that differ raise a `DisagreementError` in the next operation whose tensors may travel
    together.

    Args:
        num_bytes: A tensor that is larger travels alone; 0: each does.

    Raises:
        NotInitializedError: `tfddl.init()` has not been called.
    """
    _LIMIT.current()["bytes"] = num_bytes


def fusion_limit(runtime: Runtime) -> int | None:
    """What `limit_fusion` has set; None where nobody has called it."""
    return _LIMIT.of(runtime).get("bytes")
