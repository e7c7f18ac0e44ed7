"""`import horovod` finds the modules of `tfddl.horovod`: the same module objects."""

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
"""The Horovod whose surface this is."""

_NAME, _OURS = "horovod", "tfddl.horovod"


def install(*, keras2: bool = False) -> None:
    """Makes ``import horovod``, and everything under it, find tfddl's modules in this process.

    `tfddlrun --horovod` does it for the scripts that it starts. Called again it does no harm.

    Args:
        keras2: Also bear with what scripts of the age of Keras 2 say and Keras 3 doesn't know
            (see `tfddl._src.horovod.keras2`), each with one warning that shows the modern line.

    Raises:
        StartError: The real Horovod has been imported in this process.
    """
    there = sys.modules.get(_NAME)
    if there is not None and there.__name__ != _OURS:
        raise StartError(
            f"The real Horovod ({getattr(there, '__file__', None)}) has been imported before "
            "tfddl.horovod.install(); a process can have one of them. Call install() first, or "
            "leave Horovod's own import out."
        )
    if not any(isinstance(finder, _Aliases) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Aliases())
    if keras2 and not any(isinstance(finder, _AfterKeras) for finder in sys.meta_path):
        if "keras" in sys.modules:
            _bear_with_keras2()
        else:
            sys.meta_path.insert(0, _AfterKeras())


class _Aliases(MetaPathFinder):
    """Finds ``horovod.x`` where ``tfddl.horovod.x`` is."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != _NAME:
            return None
        ours = _OURS + fullname.removeprefix(_NAME)
        try:
            found = importlib.util.find_spec(ours)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise ModuleNotFoundError(
                f"No module named {fullname!r}. HINT: `import horovod` is tfddl's here, which has "
                "horovod.tensorflow, horovod.tensorflow.keras, horovod.keras and what belongs to "
                "them; PyTorch, MXNet, Spark and Ray aren't.",
                name=fullname,
            )
        is_package = found.submodule_search_locations is not None
        return importlib.machinery.ModuleSpec(fullname, _Alias(ours), is_package=is_package)


class _Alias(Loader):
    """Hands out a module of ours."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._spec: importlib.machinery.ModuleSpec | None = None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # Python has put the alias' there.


class _AfterKeras(MetaPathFinder):
    """Waits for Keras to be imported; nothing is loaded for the sake of a script without it.

    Keras and TensorFlow import each other, whichever comes first: what comes after Keras has to
    wait until neither is in the middle of it.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._waits = ["keras", "tensorflow"]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._waits:
            return None
        self._waits.remove(fullname)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Around(spec.loader, self._while_executing)
        return spec

    @contextlib.contextmanager
    def _while_executing(self) -> Iterator[None]:
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
        if self._depth == 0 and "keras" not in self._waits and self in sys.meta_path:
            sys.meta_path.remove(self)
            _bear_with_keras2()


class _Around(Loader):
    """A loader that works within a context."""

    def __init__(
        self, loader: Any, context: Callable[[], contextlib.AbstractContextManager[None]]
    ) -> None:
        self._loader = loader
        self._context = context

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        with self._context():
            self._loader.exec_module(module)


def _bear_with_keras2() -> None:
    importlib.import_module("tfddl._src.horovod.keras2").install()
