"""`horovod.runner.common.util.env`: rank and size from the environment."""

from tfddl._src.horovod.rank_environment import get_env_rank_and_size as get_env_rank_and_size
