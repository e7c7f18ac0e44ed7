"""Import hooks: `import horovod` finds the modules of `tfddl.horovod`, the same module objects."""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from types import ModuleType
from typing import Any

from tfddl.errors import StartError

HOROVOD_VERSION = "0.28.1"
"""The version of Horovod whose API this is."""

_HOROVOD, _TFDDL = "horovod", "tfddl.horovod"


def install(*, keras2: bool = False) -> None:
    """Makes ``import horovod``, and all modules under it, find tfddl's modules in this process.

    `tfddlrun --horovod` does it for the scripts that it starts. It is idempotent.

    Args:
        keras2: Also makes Keras 2 idioms work that Keras 3 has dropped (see
            `tfddl._src.horovod.keras2`), each with one warning that shows the modern line.

    Raises:
        StartError: The real Horovod has been imported in this process.
    """
    imported = sys.modules.get(_HOROVOD)
    if imported is not None and imported.__name__ != _TFDDL:
        raise StartError(
            f"The real Horovod ({getattr(imported, '__file__', None)}) has been imported before "
            "tfddl.horovod.install(); a process can have one of them. HINT: call install() first, "
            "or leave out the import of Horovod."
        )
    if not any(isinstance(finder, _AliasFinder) for finder in sys.meta_path):
        # First, so that an installed Horovod isn't found before.
        sys.meta_path.insert(0, _AliasFinder())
    if keras2 and not any(isinstance(finder, _KerasImportHook) for finder in sys.meta_path):
        if "keras" in sys.modules:
            _install_keras2()
        else:
            sys.meta_path.insert(0, _KerasImportHook())


class _AliasFinder(MetaPathFinder):
    """Finds ``horovod.x`` as ``tfddl.horovod.x``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != _HOROVOD:
            return None
        # The same module object under both names: classes have one identity, so that isinstance
        # works for scripts that mix them.
        target_name = _TFDDL + fullname.removeprefix(_HOROVOD)
        try:
            found = importlib.util.find_spec(target_name)
        except ModuleNotFoundError:
            found = None
        # Not None, which would leave the name to the next finder, and so to an installed Horovod.
        if found is None:
            raise ModuleNotFoundError(
                f"No module named {fullname!r}. HINT: `import horovod` is tfddl's here, which has "
                "horovod.tensorflow, horovod.tensorflow.keras, horovod.keras and what belongs to "
                "them, horovod.spark.run, horovod.spark.keras and horovod.ray.RayExecutor; "
                "PyTorch, MXNet and elastic Ray aren't.",
                name=fullname,
            )
        is_package = found.submodule_search_locations is not None
        return importlib.machinery.ModuleSpec(
            fullname, _AliasLoader(target_name), is_package=is_package
        )


class _AliasLoader(Loader):
    """Returns a module that is loaded under its own name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: importlib.machinery.ModuleSpec | None = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # importlib has set it to the alias's.


class _KerasImportHook(MetaPathFinder):
    """Installs the Keras 2 idioms once Keras is imported; a script without Keras loads nothing.

    Keras and TensorFlow import each other: whichever comes first, Keras can only be patched when
    neither is partially initialized.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._pending = ["keras", "tensorflow"]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._pending:
            return None
        self._pending.remove(fullname)  # Before find_spec, which asks all finders, this one too.
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _ContextLoader(spec.loader, self._while_executing)
        return spec

    @contextlib.contextmanager
    def _while_executing(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._depth == 0 and "keras" not in self._pending and self in sys.meta_path:
            sys.meta_path.remove(self)
            _install_keras2()


class _ContextLoader(Loader):
    """A loader that executes modules within a context."""

    def __init__(
        self, loader: Any, context: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self._loader = loader
        self._context = context

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        # Restored first: a module may read its own data files through its loader.
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        with self._context():
            self._loader.exec_module(module)


def _install_keras2() -> None:
    importlib.import_module("tfddl._src.horovod.keras2").install()
