"""`horovod.ray.RayExecutor`: `tfddl.ray.RayExecutor`, whose workers find tfddl as Horovod."""

from __future__ import annotations

from typing import Any

from tfddl._src.engines import ray
from tfddl._src.engines.ray_options import RaySettings
from tfddl._src.horovod import aliases
from tfddl._src.remote_call.pickling import Call


class RayExecutor(ray.RayExecutor):
    """Runs functions on workers that are actors of Ray; see `tfddl.ray.RayExecutor`.

    In the workers `import horovod` finds tfddl.
    """

    @classmethod
    def create_settings(
        cls,
        timeout_s: float | None = 30,
        ssh_identity_file: str | None = None,
        ssh_str: str | None = None,
        placement_group_timeout_s: float = 100.0,
        nics: Any = None,
    ) -> RaySettings:
        """The settings that the constructor takes.

        Args:
            timeout_s: Seconds that workers wait for each other in `init`.
            ssh_identity_file: Has no effect: Ray starts the workers.
            ssh_str: Has no effect.
            placement_group_timeout_s: Seconds that Ray gets to find the resources.
            nics: Has no effect: workers are reached at Ray's addresses of their hosts.
        """
        return RaySettings(timeout_s, placement_group_timeout_s)

    def _prepare_workers(self) -> None:
        self._call_all("call", Call(aliases.install, (), {"keras2": True}))
