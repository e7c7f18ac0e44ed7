"""`horovod.runner.launch`: the command `horovodrun`, from Python."""

from tfddl._src.horovod.common_util import gloo_built as gloo_built
from tfddl._src.horovod.common_util import mpi_built as mpi_built
from tfddl._src.launcher.main import run_horovodrun as run_commandline

__all__ = ["gloo_built", "mpi_built", "run_commandline"]
