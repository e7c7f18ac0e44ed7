"""How many small defects the tests notice: mutation scores of the pure modules.

Puts one defect after the other into a copy of a module (a comparison off by one, an operand left
out, a call not made, …), and runs the module's unit tests against each. What they don't notice is
printed. Strings, annotations, decorators and asserts stay as they are. It isn't part of the
everyday run: minutes per module. `docs/mutation.md` has the scores.

    python -m tests.mutate                                  # every module of the table
    python -m tests.mutate tfddl._src.commits --sample 100  # 100 defects, drawn with a fixed seed
"""

import argparse
import ast
import collections
import copy
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.txt")
"""Lines "module: function: defect  # why nobody can notice"."""


def _readers(first: str) -> list[str]:
    """Those of the readers of environments; first the one that is likely to notice."""
    names = ["nodes", "mpi", "environments", "variables", "parsing"]
    names = ["cluster", *(f"cluster_{name}" for name in names)]
    return [f"tests/test_{name}.py" for name in sorted(names, key=lambda name: name != first)]


TESTS: dict[str, list[str]] = {
    "tfddl._src.checkpoint": ["tests/test_checkpoint.py"],
    "tfddl._src.commits": ["tests/test_commits.py"],
    "tfddl._src.callbacks.learning_rate": ["tests/test_learning_rate.py"],
    "tfddl._src.launcher.restart_policy": ["tests/test_restart_policy.py"],
    "tfddl._src.cluster.cluster": ["tests/test_cluster_task.py", *_readers("cluster")],
    "tfddl._src.cluster.worker_cpus": ["tests/test_cluster_cores.py"],
    "tfddl._src.cluster.detection": _readers("cluster_environments"),
    "tfddl._src.rendezvous.handshake": ["tests/test_handshake.py"],
    "tfddl._src.cluster.environments.kubeflow": _readers("cluster_variables"),
    "tfddl._src.cluster.environments.kubernetes": _readers("cluster_nodes"),
    "tfddl._src.cluster.environments.master_address": _readers("cluster_variables"),
    "tfddl._src.cluster.environments.mpi": [
        "tests/test_cluster_task.py",
        *_readers("cluster_environments"),
    ],
    "tfddl._src.cluster.environments.mpi_address": _readers("cluster_mpi"),
    "tfddl._src.cluster.nodes": _readers("cluster_nodes"),
    "tfddl._src.cluster.parsing": _readers("cluster_parsing"),
    "tfddl._src.cluster.environments.sagemaker": _readers("cluster_environments"),
    "tfddl._src.cluster.secret": ["tests/test_secret.py", "-k", "refused or whose"],
    "tfddl._src.cluster.environments.indicators": _readers("cluster_environments"),
    "tfddl._src.cluster.environments.slurm": ["tests/test_cluster_cores.py", *_readers("cluster")],
    "tfddl._src.cluster.task": ["tests/test_cluster_task.py", *_readers("cluster_environments")],
    "tfddl._src.cluster.environments.tf_config": _readers("cluster"),
    "tfddl._src.cluster.environments.torchrun": _readers("cluster_environments"),
    "tfddl._src.cluster.environment_variables": _readers("cluster_variables"),
    "tfddl._src.sharding": ["tests/test_sharding.py"],
    "tfddl._src.comm.native.fusion_buffer": [
        "tests/test_fusion_buffer.py",
        "tests/test_schedules.py",
    ],
    "tfddl._src.comm.native.posted_arrays": ["tests/test_posted_arrays.py"],
    "tfddl._src.comm.native.schedules": ["tests/test_schedules.py"],
    "tfddl._src.comm.native.shm_backend": ["tests/test_schedules.py"],
    "tfddl._src.comm.native.reductions": ["tests/test_schedules.py"],
}
_WITH_TENSORFLOW = {"tfddl._src.checkpoint", "tfddl._src.callbacks.learning_rate"}

_COMPARISONS: dict[type[ast.cmpop], list[type[ast.cmpop]]] = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """A module with one defect."""

    name: str
    """Module, function, and what was changed."""

    line: int
    source: str


def mutants(source: str, module: str, *, with_source: bool = True) -> list[Mutant]:
    """All defects of a module, in the order of its lines.

    Args:
        source: Of the module.
        module: Its name.
        with_source: Whether to write out the module with each of them, which takes the most time.
    """
    tree = ast.parse(source)
    found: list[Mutant] = []
    names: collections.Counter[str] = collections.Counter()
    for parent, field, index, node, function in _places(tree, "module"):
        for new in _replacements(node):
            name = f"{module}: {function}: {_short(node)} -> {_short(new)}"
            names[name] += 1
            name += f" ({names[name]})" if names[name] > 1 else ""
            _put(parent, field, index, new)
            text = ast.unparse(ast.fix_missing_locations(tree)) if with_source else ""
            _put(parent, field, index, node)
            found.append(Mutant(name, node.lineno, text))
    return sorted(found, key=lambda mutant: mutant.line)


def _short(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0][:90]


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def _places(
    parent: ast.AST, function: str
) -> Iterator[tuple[ast.AST, str, int | None, ast.expr | ast.stmt, str]]:
    """Where a defect may be: the statements and expressions that do something."""
    for field, value in ast.iter_fields(parent):
        if field in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        for index, node in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(node, ast.AST) or isinstance(node, ast.Assert | ast.JoinedStr):
                continue
            if isinstance(node, ast.expr | ast.stmt):
                yield parent, field, index if isinstance(value, list) else None, node, function
            inner = function
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                inner = node.name if function == "module" else f"{function}.{node.name}"
            yield from _places(node, inner)


def _replacements(node: ast.expr | ast.stmt) -> Iterator[ast.expr | ast.stmt]:
    if isinstance(node, ast.Constant):
        yield from _other_constants(node)
    elif isinstance(node, ast.expr):
        yield from _other_expressions(node)
    else:
        yield from _other_statements(node)


def _other_constants(node: ast.Constant) -> Iterator[ast.expr]:
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, int):
        yield ast.Constant(node.value + 1)
    elif isinstance(node.value, float):
        yield ast.Constant(node.value * 2 or 1.0)


def _other_expressions(node: ast.expr) -> Iterator[ast.expr]:
    new = copy.copy(node)
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            for other in _COMPARISONS[type(op)]:
                yield ast.Compare(
                    node.left, [*node.ops[:i], other(), *node.ops[i + 1 :]], node.comparators
                )
    elif isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            rest = node.values[:i] + node.values[i + 1 :]
            yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        yield ast.BinOp(node.left, _OPERATORS[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub):
        yield node.operand
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    elif isinstance(new, ast.Call) and isinstance(new.func, ast.Name) and new.func.id in _CALLS:
        new.func = ast.Name(_CALLS[new.func.id])
        yield new


def _other_statements(node: ast.stmt) -> Iterator[ast.stmt]:
    new = copy.copy(node)
    if isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant | ast.Yield):
        yield ast.Pass()
    elif isinstance(node, ast.AugAssign):
        assert isinstance(new, ast.AugAssign)
        new.op = _OPERATORS[type(node.op)]()
        yield new
    elif isinstance(node, ast.If) and not isinstance(node.test, ast.Compare):
        assert isinstance(new, ast.If)
        new.test = ast.UnaryOp(ast.Not(), node.test)
        yield new
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value is None):
            yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Break | ast.Continue):
        yield ast.Continue() if isinstance(node, ast.Break) else ast.Break()


class Bench:
    """A copy of the project, in which one module after the other is spoilt."""

    def __init__(self, directory: Path, *, preload: list[str]) -> None:
        self._root = directory / "project"
        without = shutil.ignore_patterns(".*", "__pycache__", "runs", "docs")
        shutil.copytree(ROOT, self._root, ignore=without, symlinks=True)
        self._output = directory / "output"
        for name in preload:
            importlib.import_module(name)
        # What follows imports the copy.
        for name in [n for n in sys.modules if n.partition(".")[0] in ("tfddl", "tests")]:
            del sys.modules[name]
        sys.path.insert(0, str(self._root))
        os.environ["PYTHONPATH"] = str(self._root)
        os.environ["PYTHONDONTWRITEBYTECODE"] = os.environ["TFDDL_TEST_MUTANT"] = "1"
        sys.dont_write_bytecode = True
        os.chdir(self._root)

    def path(self, module: str) -> Path:
        return self._root.joinpath(*module.split(".")).with_suffix(".py")

    def is_noticed(self, tests: list[str], *, timeout_s: float) -> bool:
        """Whether the tests fail, or don't end in time."""
        pid = os.fork()
        if pid == 0:
            self._run(tests)
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                return status != 0
            time.sleep(0.01)
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return True

    def output(self) -> str:
        return self._output.read_text(errors="replace")[-3000:]

    def _run(self, tests: list[str]) -> None:
        status = 99
        try:
            os.setsid()
            fd = os.open(self._output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            import pytest

            options = [
                "-W",
                "ignore::pytest.PytestAssertRewriteWarning",
                "-x",
                "-q",
                "--tb=line",
                "-p",
                "no:cacheprovider",
                "--hypothesis-seed=0",
            ]
            status = int(pytest.main([*options, *tests]))
        except BaseException:  # noqa: BLE001 - this process ends here
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def measure(bench: Bench, module: str, *, sample: int, verbose: bool) -> tuple[int, int, int]:
    """How many defects of a module were made, which of them are equivalent, and noticed."""
    path = bench.path(module)
    source = path.read_text()
    path.write_text(ast.unparse(ast.parse(source)))
    tests = TESTS[module]
    begin_s = time.monotonic()
    if bench.is_noticed(tests, timeout_s=600.0):
        raise SystemExit(f"the tests of {module} fail without a defect:\n{bench.output()}")
    timeout_s = 10.0 + 3 * (time.monotonic() - begin_s)
    equivalent = {line.partition("  #")[0] for line in EQUIVALENT.read_text().splitlines()}
    made = mutants(source, module)
    num_equivalent = sum(mutant.name in equivalent for mutant in made)
    made = [mutant for mutant in made if mutant.name not in equivalent]
    if 0 < sample < len(made):
        made = sorted(random.Random(0).sample(made, sample), key=lambda mutant: mutant.line)
    noticed = 0
    for mutant in made:
        path.write_text(mutant.source)
        is_noticed = bench.is_noticed(tests, timeout_s=timeout_s)
        noticed += is_noticed
        if verbose or not is_noticed:
            word = "noticed" if is_noticed else "SURVIVED"
            print(f"  {word} line {mutant.line}: {mutant.name}", flush=True)
    path.write_text(source)
    return len(made), num_equivalent, noticed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", default=list(TESTS), metavar="MODULE")
    parser.add_argument("--sample", type=int, default=0, help="at most so many per module")
    parser.add_argument("--verbose", action="store_true", help="also those that are noticed")
    options = parser.parse_args()
    preload = ["numpy", "pytest", "hypothesis"]
    if _WITH_TENSORFLOW & set(options.modules):
        preload += ["tensorflow", "keras"]
    with tempfile.TemporaryDirectory(prefix="tfddl-mutate-") as directory:
        bench = Bench(Path(directory), preload=preload)
        for module in options.modules:
            made, equivalent, noticed = measure(
                bench, module, sample=options.sample, verbose=options.verbose
            )
            print(
                f"{module}: {noticed} of {made} noticed, {100 * noticed / max(1, made):.0f} % "
                f"({equivalent} equivalent ones left out)",
                flush=True,
            )


if __name__ == "__main__":
    main()
