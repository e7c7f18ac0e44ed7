"""Python's `site` imports this at startup: `tfddlrun --horovod` puts its directory on PYTHONPATH.

The first import of horovod, keras or tensorflow then calls `tfddl.horovod.install`; until then
nothing is loaded. A `sitecustomize` that this one shadows is run, too.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_DIRECTORY = str(Path(__file__).resolve().parent)


class _Installer:
    """Installs the finders of `tfddl.horovod.install` when they are first needed."""

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in ("horovod", "keras", "tensorflow"):
            return None
        sys.meta_path.remove(self)
        try:
            from tfddl._src.horovod.aliases import install
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.partition(".")[0] != "tfddl":
                raise
            if fullname != "horovod":
                return None
            raise ModuleNotFoundError(
                f"tfddlrun --horovod lets `import horovod` find tfddl, but {sys.executable} has "
                "no tfddl. HINT: install tfddl there, or start the Python that has it",
                name="horovod",
            ) from None
        install(keras2=True)
        return importlib.util.find_spec(fullname)


def _run_shadowed() -> None:
    paths = [path for path in sys.path if str(Path(path).resolve()) != _DIRECTORY]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _Installer())
_run_shadowed()
