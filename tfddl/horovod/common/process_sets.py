"""`horovod.common.process_sets`: subsets of the ranks."""

from tfddl._src.horovod.process_sets import ProcessSet as ProcessSet
from tfddl._src.horovod.process_sets import add_process_set as add_process_set
from tfddl._src.horovod.process_sets import global_process_set as global_process_set
from tfddl._src.horovod.process_sets import remove_process_set as remove_process_set
