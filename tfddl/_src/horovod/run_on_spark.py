"""`horovod.spark.run`: Horovod's signature of `tfddl.spark.run` (horovod/spark/runner.py)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfddl._src.engines import spark
from tfddl._src.remote_call.pickling import Call
from tfddl.errors import UnsupportedError


def run(  # noqa: PLR0913 - Horovod's signature
    fn: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    num_proc: int | None = None,
    start_timeout: float | None = None,
    use_mpi: bool | None = None,
    use_gloo: bool | None = None,
    extra_mpi_args: str | None = None,
    env: Mapping[str, str] | None = None,
    stdout: Any = None,
    stderr: Any = None,
    verbose: Any = 1,
    nics: Any = None,
    prefix_output_with_timestamp: bool = False,
    executable: str | None = None,
) -> list[Any]:
    """Calls a function on the tasks of Spark's active context; see `tfddl.spark.run`.

    In the workers `import horovod` finds tfddl.

    Args:
        fn: The function.
        args: Its arguments.
        kwargs: Its arguments by name.
        num_proc: The number of workers; None is one for each slot.
        start_timeout: As of `tfddl.spark.run`.
        use_mpi: Must not be given.
        use_gloo: Has no effect.
        extra_mpi_args: Must not be given.
        env: Environment variables for the workers.
        stdout: Must not be given: output is in the executors' logs.
        stderr: The same.
        verbose: Has no effect.
        nics: Must not be given: workers are reached where Spark reaches its executors.
        prefix_output_with_timestamp: Has no effect.
        executable: Must not be given: it is the executors' Python.

    Returns:
        The results, in rank order.

    Raises:
        UnsupportedError: An argument isn't supported.
        LaunchError: As of `tfddl.spark.run`; it is a `RuntimeError`.
    """
    given = {
        "use_mpi": use_mpi,
        "extra_mpi_args": extra_mpi_args,
        "stdout": stdout,
        "stderr": stderr,
        "nics": nics,
        "executable": executable,
    }
    for name, value in given.items():
        if value:
            raise UnsupportedError(
                f"horovod.spark.run(…, {name}={value!r}) isn't supported: Spark places the "
                "workers, and keeps their output in the executors' logs. HINT: leave it out"
            )
    return spark.call_on_tasks(
        Call(fn, tuple(args), dict(kwargs or {})),
        num_proc=num_proc,
        env=env,
        start_timeout=start_timeout,
        as_horovod=True,
    )
