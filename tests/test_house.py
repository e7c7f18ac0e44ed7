"""The floors of the house: who may import whom, and that the table in the README says so."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tfddl"

# From the ground up. Within a folder, siblings in the order listed.
FLOORS: list[list[str]] = [
    ["errors", "cgroups"],
    ["cores"],
    ["folder_lock", "limits"],
    ["cluster", "commits", "plan", "progress", "threads"],
    ["wire"],
    ["launcher", "transport"],
    ["runtime"],
    ["collectives"],
    ["gradients", "moments", "data", "checkpoint"],
    ["optimizer"],
    ["keras_hooks"],
    ["callbacks", "models"],
    ["segmentation", "bench", "horovod"],
    ["api"],
]
SIBLINGS: dict[str, list[str]] = {
    "cluster": [
        "parsing",
        "cluster",
        "handshake",
        "endpoint",
        "channel",
        "ports",
        "rendezvous_base",
        "rendezvous_host",
        "rendezvous_visitor",
        "rendezvous",
        "secret",
        "variables",
        "master",
        "task",
        "tf_config",
        "slurm",
        "mpi_master",
        "mpi",
        "kubeflow",
        "torchrun",
        "sagemaker",
        "kubernetes",
        "signs",
        "detect",
        "cores",
        "nodes",
        "__main__",
    ],
    "launcher": [
        "system",
        "horovod",
        "cores",
        "worker_count",
        "plan",
        "memory",
        "interfaces",
        "hosts",
        "environment",
        "signals",
        "oom",
        "output",
        "log_file",
        "display",
        "stalls",
        "restarts",
        "report",
        "attendance",
        "frames",
        "host_store",
        "ssh",
        "handle",
        "worker",
        "guard",
        "examine",
        "agent",
        "link",
        "fleet",
        "nodes",
        "host_flags",
        "node_flags",
        "keeping",
        "exposure",
        "supervise",
        "recovery",
        "job",
        "findings",
        "doctor",
        "dry_run",
        "horovodrun",
        "main",
        "__main__",
    ],
    "wire": [
        "arithmetic",
        "flat",
        "telling",
        "messages",
        "stacks",
        "circles",
        "waiting",
        "links",
        "mesh",
        "session",
        "carrier",
        "memory",
        "pool",
        "segments",
        "neighbours",
        "lobby",
        "scripts",
        "streams",
        "hosts",
        "exchange",
    ],
    "runtime": [
        "options",
        "gpus",
        "devices",
        "networks",
        "meeting",
        "servers",
        "connecting",
        "children",
        "process",
    ],
    "transport": [
        "errors",
        "base",
        "service",
        "late_variable",
        "tracer",
        "alone",
        "forked",
        "tally",
        "watch",
        "pieces",
        "guard",
        "roll",
        "strategy",
        "nccl",
        "choosing",
        "timed",
        "wired",
        "two_level",
        "traced",
    ],
    "collectives": [
        "untouched",
        "process_sets",
        "agreement",
        "packs",
        "dense",
        "gathering",
        "reducing",
        "broadcasting",
        "exchanging",
        "scattering",
        "meeting",
        "objects",
        "timeline",
        "together",
        "variables",
    ],
    "data": [
        "structure",
        "weights",
        "memory_map",
        "sources",
        "lineage",
        "stream",
        "recipe",
        "examples",
        "share",
        "finding",
        "sharding",
        "slicing",
    ],
    "gradients": ["averaging", "matching", "reducing", "counting", "tape"],
    "keras_hooks": [
        "patching",
        "scope",
        "strategies",
        "normalizing",
        "compiling",
        "statistics",
        "steps",
        "session",
        "failing",
        "whole_data",
        "plain_data",
        "comparing",
        "resuming",
        "stock",
        "evaluating",
        "fitting",
        "loss_scaling",
        "legacy",
    ],
    "callbacks": [
        "snapshots",
        "loading",
        "writing",
        "preemption",
        "checkpoint",
        "learning_rate",
        "monitor_meter",
        "monitor_charts",
        "monitor_tables",
        "monitor_picture",
        "monitor_writer",
        "monitor",
        "state",
    ],
    "models": ["unet"],
    "segmentation": [
        "scenery",
        "car",
        "pixels",
        "synthetic",
        "layout",
        "examples",
        "augment",
        "presets",
        "config",
        "progress",
        "dice",
        "picture",
        "ranks",
        "training_data",
        "training",
        "preparing",
        "predicting",
        "command",
        "train",
        "prepare",
        "predict",
    ],
    "horovod": [
        "aliases",
        "common",
        "settings",
        "sets",
        "reductions",
        "topology",
        "tensors",
        "arrays",
        "normalization",
        "training",
        "loading",
        "running",
        "calling",
        "runner",
        "timeline",
        "states",
        "keras",
        "tensorflow",
        "keras2",
        "site",
    ],
    "bench": [
        "usage",
        "reading",
        "table",
        "jobs",
        "memory",
        "problems",
        "proof",
        "exactness",
        "machines",
        "load",
        "spread",
        "workloads",
        "orders",
        "channel",
        "line",
        "devices",
        "models",
        "pacer",
        "calls",
        "contestants",
        "entrance",
        "worker",
        "progress",
        "ground",
        "settings",
        "results",
        "crew",
        "field",
        "training",
        "calling",
        "starting",
        "report",
        "charts",
        "plots",
        "board",
        "speed",
        "main",
        "__main__",
        "blows",
        "evidence",
        "namespaces",
        "victim",
        "ordeal",
        "ordeals",
        "faults",
        "streams",
        "turns",
        "crossing",
        "between",
    ],
}
WITHOUT_TENSORFLOW = [
    "errors",
    "cgroups",
    "cores",
    "folder_lock",
    "limits",
    "cluster",
    "commits",
    "plan",
    "progress",
    "threads",
    "wire",
    "launcher",
]
TENSORFLOW = {"tensorflow", "keras", "tensorboard"}
# The public surface, which commands of the application use as any user would.
SURFACE = {"segmentation", "bench"}


def _modules() -> list[str]:
    return sorted(
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for path in PACKAGE.rglob("*.py")
        if path.name != "__init__.py" or path.parent != PACKAGE
    )


def _imports(module: str) -> set[str]:
    """Everything that a module imports, wherever in it, as full names."""
    found: set[str] = set()
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _room(name: str) -> str:
    return name.split(".")[0]


def _floor(room: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def test_every_room_has_a_floor() -> None:
    listed = {room for rooms in FLOORS for room in rooms}
    assert {_room(module) for module in _modules()} == listed


@pytest.mark.parametrize("module", _modules())
def test_imports_go_down(module: str) -> None:
    room = _room(module)
    for name in _imports(module):
        if not name.startswith("tfddl."):
            continue
        other = _room(name.removeprefix("tfddl."))
        if other == "__version__" or room in SURFACE and _floor(other) < _floor(room):
            continue
        if room == other:
            _check_siblings(module, name)
        else:
            assert _floor(other) < _floor(room), f"{module} imports {name}, which isn't below it"


def _check_siblings(module: str, imported: str) -> None:
    order = SIBLINGS.get(_room(module))
    mine, other = module.split(".")[1:], imported.split(".")[2:]
    if order is None or mine == ["__init__"] or not mine or other[0] not in order:
        return
    if other[0] == mine[0]:  # A folder within the folder.
        return
    assert order.index(other[0]) < order.index(mine[0]), f"{module} imports {imported}, a later one"


@pytest.mark.parametrize("module", [m for m in _modules() if _room(m) in WITHOUT_TENSORFLOW])
def test_the_lower_floors_know_no_tensorflow(module: str) -> None:
    assert not {_room(name) for name in _imports(module)} & TENSORFLOW


def test_siblings_are_all_listed() -> None:
    for folder, order in SIBLINGS.items():
        names = {path.stem for path in (PACKAGE / folder).glob("*.py")} - {"__init__"}
        names |= {path.parent.name for path in (PACKAGE / folder).glob("*/*.py")}
        assert names == set(order), folder


def test_only_keras_hooks_touches_keras_private_parts() -> None:
    for module in _modules():
        names = _imports(module)
        # `transport.service` is the one door to what TensorFlow's runtime has no public one for.
        if not module.startswith("keras_hooks") and module != "transport.service":
            assert not [n for n in names if n.startswith("keras.src") or ".python." in n], module


def test_nobody_writes_the_environment() -> None:
    for module in _modules():
        path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
        assert not re.search(
            r"os\.environ\[.*\] = |os\.putenv|environ\.setdefault", path.read_text()
        )


def test_the_readme_lists_the_rooms() -> None:
    readme = (ROOT / "README.md").read_text()
    for room in (room for rooms in FLOORS for room in rooms):
        kind = "/" if (PACKAGE / room).is_dir() else ".py"
        assert f"`{room}{kind}`" in readme, room
