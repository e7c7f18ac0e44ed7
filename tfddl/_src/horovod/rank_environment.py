"""Rank and size before `init`, from the environment (horovod/runner/common/util/env.py)."""

import os

from tfddl.errors import StartError

_PAIRS = (
    ("HOROVOD_RANK", "HOROVOD_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
)


def get_env_rank_and_size() -> tuple[int, int]:
    """The rank and size that the launcher has set; (0, 1) without a launcher.

    Raises:
        StartError: Only one of both is set; it is a `RuntimeError`.
    """
    for rank_name, size_name in _PAIRS:
        rank, size = os.environ.get(rank_name), os.environ.get(size_name)
        if rank is not None and size is not None:
            return int(rank), int(size)
        if rank is not None or size is not None:
            raise StartError(
                f"{rank_name} is {rank}, and {size_name} is {size}; expected both, or neither. "
                "HINT: start the script with tfddlrun."
            )
    return 0, 1
