"""`horovod.common.util`: what is built, and small helpers that scripts and tests import."""

from tfddl._src.horovod.common_util import ccl_built as ccl_built
from tfddl._src.horovod.common_util import check_extension as check_extension
from tfddl._src.horovod.common_util import check_installed_version as check_installed_version
from tfddl._src.horovod.common_util import ddl_built as ddl_built
from tfddl._src.horovod.common_util import env as env
from tfddl._src.horovod.common_util import extension_available as extension_available
from tfddl._src.horovod.common_util import gloo_built as gloo_built
from tfddl._src.horovod.common_util import gpu_available as gpu_available
from tfddl._src.horovod.common_util import is_iterable as is_iterable
from tfddl._src.horovod.common_util import (
    is_version_greater_equal_than as is_version_greater_equal_than,
)
from tfddl._src.horovod.common_util import mpi_built as mpi_built
from tfddl._src.horovod.common_util import nccl_built as nccl_built
from tfddl._src.horovod.common_util import num_rank_is_power_2 as num_rank_is_power_2
from tfddl._src.horovod.common_util import split_list as split_list
