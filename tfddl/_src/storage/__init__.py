"""Files in stores that TensorFlow reaches by `tf.io.gfile`: paths, and a lock on a directory."""

from tfddl._src.storage.lock import RemoteLock as RemoteLock
from tfddl._src.storage.lock import check_held as check_held
from tfddl._src.storage.path import RemoteError as RemoteError
from tfddl._src.storage.path import RemoteNotFoundError as RemoteNotFoundError
from tfddl._src.storage.path import RemotePath as RemotePath
from tfddl._src.storage.path import make_path as make_path
