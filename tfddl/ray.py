"""Workers as actors of Ray: ``pip install '.[ray]'`` in a checkout."""

from tfddl._src.engines.ray import RayExecutor as RayExecutor
from tfddl._src.engines.ray_options import RaySettings as RaySettings

__all__ = ["RayExecutor", "RaySettings"]
