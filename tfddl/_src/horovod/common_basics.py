"""`HorovodBasics`, which Horovod makes for each of its front ends (horovod/common/basics.py)."""

from tfddl._src.horovod import basics, timeline
from tfddl._src.horovod.process_sets import REGISTERED


class HorovodBasics:
    """The functions of `basics` as methods."""

    def __init__(self, pkg_path: str = "", *args: str) -> None:
        """Ignores where Horovod's own library would be."""

    init = staticmethod(basics.init)
    shutdown = staticmethod(basics.shutdown)
    is_initialized = staticmethod(basics.is_initialized)
    start_timeline = staticmethod(timeline.start_timeline)
    stop_timeline = staticmethod(timeline.stop_timeline)
    size = staticmethod(basics.size)
    local_size = staticmethod(basics.local_size)
    cross_size = staticmethod(basics.cross_size)
    rank = staticmethod(basics.rank)
    local_rank = staticmethod(basics.local_rank)
    cross_rank = staticmethod(basics.cross_rank)
    is_homogeneous = staticmethod(basics.is_homogeneous)
    mpi_threads_supported = staticmethod(basics.mpi_threads_supported)
    mpi_enabled = staticmethod(basics.mpi_enabled)
    mpi_built = staticmethod(basics.mpi_built)
    gloo_enabled = staticmethod(basics.gloo_enabled)
    gloo_built = staticmethod(basics.gloo_built)
    nccl_built = staticmethod(basics.nccl_built)
    ddl_built = staticmethod(basics.ddl_built)
    ccl_built = staticmethod(basics.ccl_built)
    cuda_built = staticmethod(basics.cuda_built)
    rocm_built = staticmethod(basics.rocm_built)

    def _get_process_set_ids_and_ranks(self) -> dict[int, list[int]]:
        # Private in Horovod, too, whose tests call it.
        return REGISTERED.current().ranks_by_id()
