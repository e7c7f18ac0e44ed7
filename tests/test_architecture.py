"""The layers: who may import whom. The table that says so is in docs/architecture.md."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tfddl"
TENSORFLOW = {"tensorflow", "keras", "tensorboard"}


def _read_table() -> dict[str, tuple[int, bool]]:
    """Package or module -> (layer, whether it may import TensorFlow)."""
    table = {}
    text = (ROOT / "docs" / "architecture.md").read_text()
    for row in re.findall(r"^\| (\d+) \| ([^|]*) \| (yes|no) \|", text, re.MULTILINE):
        for name in re.findall(r"`([^`]*)`", row[1]):
            dotted = "tfddl." + name.strip("/").removesuffix(".py").replace("/", ".")
            assert dotted not in table, f"{name} is in two layers"
            table[dotted] = (int(row[0]), row[2] == "yes")
    return table


LAYERS = _read_table()


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _home(name: str) -> str | None:
    """The package of the table that a module is in: the longest that its name begins with."""
    parts = name.split(".")
    heads = (".".join(parts[:count]) for count in range(len(parts), 1, -1))
    return next((head for head in heads if head in LAYERS), None)


def _imports(module: str) -> set[str]:
    """All that a module imports, wherever in it; names of modules where these are modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            assert node.module
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found


IMPORTS = {module: _imports(module) for module in MODULES}
PRIVATE = sorted(module for module in MODULES if module not in ("tfddl", "tfddl._src"))


def test_the_table_names_every_package_and_nothing_else() -> None:
    homes = {module: _home(module) for module in PRIVATE}
    assert [module for module, home in homes.items() if home is None] == []
    assert set(LAYERS) - set(homes.values()) == set()


@pytest.mark.parametrize("home", sorted(LAYERS))
def test_imports_go_down(home: str) -> None:
    layer, _ = LAYERS[home]
    wrong = [
        f"{module} imports {name} (layer {LAYERS[other][0]})"
        for module in PRIVATE
        if _home(module) == home
        for name in IMPORTS[module]
        if (other := _home(name)) is not None and other != home and LAYERS[other][0] >= layer
    ]
    assert wrong == [], f"{home} is layer {layer}"


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph = {
        module: {name for name in IMPORTS[module] if name in MODULES and name != module}
        for module in PRIVATE
    }
    graphlib.TopologicalSorter(graph).prepare()  # Raises CycleError, which shows the circle.


def test_lower_layers_load_no_tensorflow() -> None:
    wrong = [
        f"{module} imports {name}"
        for module in PRIVATE
        if (home := _home(module)) is not None and not LAYERS[home][1]
        for name in IMPORTS[module]
        if name.split(".")[0] in TENSORFLOW
    ]
    assert wrong == []


def test_importing_a_lower_layer_loads_no_tensorflow_by_its_parents() -> None:
    """`import a.b.c` runs `a/b/__init__.py` as well, with all that it imports at its top."""

    def at_import(module: str) -> set[str]:
        body = ast.parse(MODULES[module].read_text()).body
        found = set()
        for node in body:  # Not within functions, nor under `if TYPE_CHECKING`.
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        found.add(module)
        return {
            ".".join(parts[:count])
            for name in found
            for parts in [name.split(".")]
            for count in range(1, len(parts) + 1)
        }

    direct = {module: at_import(module) for module in MODULES}
    for module in PRIVATE:
        home = _home(module)
        if home is None or LAYERS[home][1]:
            continue
        loaded, waiting = set(), {module}
        while waiting:
            name = waiting.pop()
            loaded.add(name)
            waiting |= direct.get(name, set()) - loaded
        assert not loaded & TENSORFLOW, module


def test_only_keras_hooks_touches_keras_private_parts() -> None:
    # `tensorflow_private` holds what TensorFlow's runtime has no public API for.
    allowed = ("tfddl._src.keras_hooks", "tfddl._src.comm.tensorflow_private")
    for module in PRIVATE:
        if not module.startswith(allowed):
            private = [n for n in IMPORTS[module] if n.startswith("keras.src") or ".python" in n]
            assert private == [], module


def _private_keras_names() -> set[str]:
    """What `keras_hooks` looks up by `private`, or wraps."""
    calls = [
        node
        for module in PRIVATE
        if module.startswith("tfddl._src.keras_hooks")
        for node in ast.walk(ast.parse(MODULES[module].read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1
        if node.func.id in ("private", "wrap_method", "wrap_function")
    ]
    names = {a.value for call in calls if isinstance(a := call.args[1], ast.Constant)}
    return {name for name in names if isinstance(name, str) and name.startswith("_")} - {"__init__"}


def test_keras_private_names_are_known_in_keras_hooks_only() -> None:
    names = _private_keras_names()
    assert {"_initial_epoch", "_get_metrics_result_or_logs"} <= names
    for module in PRIVATE:
        if not module.startswith("tfddl._src.keras_hooks"):
            tree = ast.parse(MODULES[module].read_text())
            used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
            assert not used & names, module


def test_nobody_writes_the_environment() -> None:
    pattern = re.compile(r"os\.environ\[.*\] = |os\.putenv|environ\.setdefault")
    assert [m for m, path in MODULES.items() if pattern.search(path.read_text())] == []


def test_public_modules_are_few() -> None:
    """What isn't under `_src` is for users: a new name there is a promise."""
    public = {module.split(".")[1] for module in PRIVATE} - {"_src"}
    assert public == {
        "bench",
        "callbacks",
        "cluster",
        "debug",
        "errors",
        "horovod",
        "launcher",
        "models",
        "ray",
        "segmentation",
        "spark",
    }


def _attributes_typed_any(module: str) -> list[str]:
    """Attributes of classes whose annotation says `Any`."""
    tree = ast.parse(MODULES[module].read_text())
    fields = [n for c in ast.walk(tree) if isinstance(c, ast.ClassDef) for n in c.body]
    found = [
        node
        for node in [*ast.walk(tree), *fields]
        if isinstance(node, ast.AnnAssign)
        and (isinstance(node.target, ast.Attribute) or node in fields)
        and "Any" in {n.id for n in ast.walk(node.annotation) if isinstance(n, ast.Name)}
    ]
    return [f"{module}: {ast.unparse(node)}" for node in dict.fromkeys(found)]


def test_lower_layers_hold_nothing_of_upper_ones() -> None:
    """An attribute typed `Any` could: what the layers above keep, they keep in a `PerRuntime`."""
    lower = ("tfddl._src.comm", "tfddl._src.comm.native", "tfddl._src.runtime")
    modules = [module for module in PRIVATE if _home(module) in lower]
    assert [found for module in modules for found in _attributes_typed_any(module)] == []
