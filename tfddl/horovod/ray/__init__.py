"""Horovod on Ray, as scripts import it: `RayExecutor`. Elastic executors aren't here."""

from tfddl._src.horovod.ray_executor import RayExecutor as RayExecutor

__all__ = ["RayExecutor"]
