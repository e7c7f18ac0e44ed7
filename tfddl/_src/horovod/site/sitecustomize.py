"""Python runs this at its start when `tfddlrun --horovod` has put this folder before all others.

It arranges that the first import of horovod, keras or tensorflow calls `tfddl.horovod.install`;
until then it loads nothing. Then it runs the `sitecustomize` that this one hides, if there is one.
"""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_FOLDER = str(Path(__file__).resolve().parent)


class _Installer:
    """Stands in for the finders that `tfddl.horovod.install` makes, until they are needed."""

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


def _run_hidden() -> None:
    folders = [folder for folder in sys.path if str(Path(folder).resolve()) != _FOLDER]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", folders)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


sys.meta_path.insert(0, _Installer())
_run_hidden()
