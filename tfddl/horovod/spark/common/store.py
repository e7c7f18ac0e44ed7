"""`horovod.spark.common.store`: where estimators keep their files."""

from tfddl._src.estimator.store import DBFSLocalStore as DBFSLocalStore
from tfddl._src.estimator.store import FilesystemStore as FilesystemStore
from tfddl._src.estimator.store import HDFSStore as HDFSStore
from tfddl._src.estimator.store import LocalStore as LocalStore
from tfddl._src.estimator.store import Store as Store

__all__ = ["DBFSLocalStore", "FilesystemStore", "HDFSStore", "LocalStore", "Store"]
