"""`tfddl-migrate`: what a Horovod script looks like with tfddl's own API, as a diff.

Nothing is edited, and nothing is guessed: what can't be decided from the text stays on Horovod's
names, which tfddl has too, and is listed with its line. No TensorFlow.
"""

import argparse
import ast
import difflib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tfddl import __version__
from tfddl._src.command_line import accept_underscores
from tfddl._src.horovod.migration_rules import (
    ALL_RANKS,
    CONSTANTS,
    GRADIENTS,
    HINTS,
    NOT_NEEDED,
    NUMPY,
    OPTIMIZERS,
    SAME,
    SCHEDULES,
    arguments_of,
    assignments_of,
    droppable_arguments,
    fitted_arrays,
    sliced_array,
)
from tfddl._src.horovod.source_edits import SourceEdits


class Migration:
    """One script: its text with tfddl's API, and what is left to decide."""

    def __init__(self, text: str) -> None:
        """Parses the script.

        Raises:
            SyntaxError: It is none of Python 3.
        """
        self.notes: list[tuple[int, str]] = []
        self._edits = SourceEdits(text)
        self._parents = {
            child: node
            for node in ast.walk(self._edits.tree)
            for child in ast.iter_child_nodes(node)
        }
        self._aliases: dict[str, str] = {}
        self._imports: list[tuple[ast.Import | ast.ImportFrom, str]] = []
        self._kept: set[str] = set()
        self._slices: list[tuple[ast.Assign, list[str]]] = []

    def run(self) -> str:
        """The new text; `notes` has (line, text) of what it leaves."""
        for node in ast.walk(self._edits.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._find_alias(node)
        visits: dict[type[ast.AST], Callable[[ast.AST], None]] = {
            ast.Assign: self._visit_slices,
            ast.Attribute: self._visit_name,
            ast.Call: self._visit_call,
            ast.If: self._visit_rank_0,
        }
        for kind in visits:
            for node in ast.walk(self._edits.tree):
                if type(node) is kind:
                    visits[kind](node)
        self._shard()
        self._rewrite_imports()
        self.notes.sort()
        return self._edits.apply()

    def _note(self, node: ast.stmt | ast.expr | ast.keyword, text: str) -> None:
        self.notes.append((node.lineno, text))

    def _find_alias(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [(f"{module}.{name.name}", name.asname or name.name) for name in node.names]
        else:
            names = [(name.name, name.asname or "") for name in node.names]
        if not any(full.split(".")[0] == "horovod" for full, _ in names):
            return
        full, alias = names[0]
        fronts = ("horovod.tensorflow", "horovod.keras", "horovod.tensorflow.keras")
        if len(names) == 1 and alias and full in fronts:
            self._aliases[alias] = full
            self._imports.append((node, alias))
        else:
            self._note(
                node,
                "this import stays Horovod's; tfddl.horovod has its modules, too, by their names",
            )

    def _rewrite_imports(self) -> None:
        is_imported = False
        for node, alias in self._imports:
            lines = [] if is_imported else ["import tfddl"]
            if alias in self._kept:
                lines.append(f"import tfddl.{self._aliases[alias]} as {alias}")
            is_imported = True
            indent = "\n" + " " * node.col_offset
            if lines:
                self._edits.replace(node, indent.join(lines))
            else:
                self._edits.remove_lines(node)

    def _path(self, node: ast.expr) -> tuple[str, str] | None:
        """Alias and dotted name of ``hvd.callbacks.X``; None for anything else."""
        names: list[str] = []
        while isinstance(node, ast.Attribute):
            names.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in self._aliases and names:
            return node.id, ".".join(reversed(names))
        return None

    def _visit_name(self, node: ast.AST) -> None:
        """Names of Horovod that aren't called: those that are, `_visit_call` sees."""
        assert isinstance(node, ast.Attribute)
        found = self._path(node)
        parent = self._parents.get(node)
        is_called = isinstance(parent, ast.Call) and parent.func is node
        if found is None or is_called or isinstance(parent, ast.Attribute):
            return
        alias, name = found
        if name in CONSTANTS:
            self._edits.replace(node, f"tfddl.{CONSTANTS[name]}")
        elif name in SAME:
            self._edits.replace(node, f"tfddl.{name}")
        else:
            self._keep(node, alias, name)

    def _keep(self, node: ast.expr, alias: str, name: str) -> None:
        self._kept.add(alias)
        first = name.split(".")[0]
        hint = HINTS.get(name, HINTS.get(first, "tfddl has none of this name with these arguments"))
        self._note(node, f"{alias}.{name} stays Horovod's: {hint}")

    def _visit_call(self, node: ast.AST) -> None:
        assert isinstance(node, ast.Call)
        self._modernize(node)
        found = self._path(node.func)
        if found is None:
            return
        alias, name = found
        last = name.rpartition(".")[2]
        if name.startswith("callbacks.") and last in NOT_NEEDED:
            self._remove_callback(node, alias, name)
        elif name.startswith("callbacks.") and last in SCHEDULES:
            self._rename_schedule(node, alias, name)
        elif alias in self._aliases and self._aliases[alias].endswith("keras") and name in NUMPY:
            self._kept.add(alias)
            self._note(node, f"{alias}.{name} stays Horovod's: it returns NumPy, tfddl's tensors")
        else:
            self._rename_call(node, alias, name)

    def _rename_call(self, node: ast.Call, alias: str, name: str) -> None:
        positional, named = SAME.get(name, (-1, ()))
        given = {keyword.arg or "**" for keyword in node.keywords}
        droppable = droppable_arguments(node) if (positional, named) == GRADIENTS else ()
        if len(node.args) > positional or given - {*named, *droppable}:
            self._keep(node, alias, name)
            return
        for position, keyword in enumerate(node.keywords):
            if keyword.arg in droppable:
                self._edits.remove_item(arguments_of(node), len(node.args) + position)
        if name == "broadcast" and self._aliases[alias].endswith("keras"):
            name = "broadcast_object"  # A number, or NumPy's array, and not a tensor.
        if name == "DistributedOptimizer":
            self._note(
                node,
                "tfddl's optimizer weights ranks by their examples; evaluate and predict are the "
                "job's: all ranks call them together, each with the whole data or its shard",
            )
        self._edits.replace(node.func, f"tfddl.{name}")

    def _remove_callback(self, node: ast.Call, alias: str, name: str) -> None:
        parent = self._parents[node]
        root = node.args[0] if node.args else None
        is_root_0 = root is None or (isinstance(root, ast.Constant) and root.value in (0, ""))
        statement = self._parents.get(parent)
        is_appended = (
            isinstance(parent, ast.Call)
            and isinstance(parent.func, ast.Attribute)
            and parent.func.attr == "append"
            and isinstance(statement, ast.Expr)
        )
        others = {keyword.arg for keyword in node.keywords} - {"device"}
        if not is_root_0 or others or len(node.args) > 1:
            self._keep(node, alias, name)
        elif isinstance(parent, ast.List):
            self._edits.remove_item(parent.elts, parent.elts.index(node))
        elif is_appended and len(self._body_of(statement)) > 1:
            assert isinstance(statement, ast.Expr)
            self._edits.remove_lines(statement)
        else:
            self._kept.add(alias)
            self._note(node, f"{alias}.{name} isn't needed with tfddl's optimizer: leave it out")

    def _body_of(self, statement: ast.AST | None) -> Sequence[ast.AST]:
        """The statements that this one is among: the last one can't be removed."""
        parent = None if statement is None else self._parents.get(statement)
        bodies = [getattr(parent, name, None) or [] for name in ("body", "orelse", "finalbody")]
        return next((body for body in bodies if statement in body), [])

    def _rename_schedule(self, node: ast.Call, alias: str, name: str) -> None:
        modern, required = SCHEDULES[name.rpartition(".")[2]]
        given = {keyword.arg for keyword in node.keywords}
        missing = [n for n in required[len(node.args) :] if n not in given]
        if len(node.args) > len(required) or missing:
            self._kept.add(alias)
            self._note(
                node,
                f"{alias}.{name} stays Horovod's: tfddl.callbacks.{modern} takes "
                f"{' and '.join(required)}, and all else by name",
            )
        else:
            self._edits.replace(node.func, f"tfddl.callbacks.{modern}")

    def _modernize(self, node: ast.Call) -> None:
        """Arguments that Keras 3 has renamed or dropped, and what tfddl does by itself."""
        called = node.func.attr if isinstance(node.func, ast.Attribute) else None
        called = node.func.id if isinstance(node.func, ast.Name) else called
        for position, keyword in enumerate(node.keywords):
            if keyword.arg == "lr" and called in OPTIMIZERS:
                value = self._edits.text(keyword.value)
                self._edits.replace(keyword, f"learning_rate={value}")
            elif keyword.arg == "experimental_run_tf_function" and called == "compile":
                self._edits.remove_item(arguments_of(node), len(node.args) + position)
        if called in ("set_memory_growth", "set_visible_devices", "set_session"):
            self._note(node, f"{called} isn't needed: tfddl.init() gives each local rank its GPU")
        if called == "shard":
            self._note(
                node,
                "for exactly one pass per epoch whatever divides: tfddl.shard_dataset(dataset, "
                "batch_size=…) of single examples, in the place of shard and batch",
            )
        if called == "variables" and not node.args:
            self._note(node, "of a Keras 3 optimizer: optimizer.variables, without the brackets")
        if called == "fit":
            self._note_steps(node)

    def _visit_slices(self, node: ast.AST) -> None:
        """Finds ``x, y = x[hvd.rank()::hvd.size()], y[…]``."""
        assert isinstance(node, ast.Assign)
        names = [sliced_array(target, value, self._path) for target, value in assignments_of(node)]
        found = [name for name in names if name is not None]
        if len(found) == len(names) and len(self._body_of(node)) > 1:
            self._slices.append((node, found))

    def _shard(self) -> None:
        """Gives `fit` a shard of the whole arrays, where a script slices them only for it."""
        sliced = {name for _, names in self._slices for name in names}
        for node in ast.walk(self._edits.tree):
            fitted = fitted_arrays(node)
            if not fitted or not sliced.issuperset(fitted):
                continue
            mine = [statement for statement, names in self._slices if set(names) & set(fitted)]
            first = min(statement.lineno for statement in mine)
            inside = {id(part) for root in (node, *mine) for part in ast.walk(root)}
            is_used_elsewhere = any(
                isinstance(part, ast.Name)
                and part.id in fitted
                and part.lineno > first
                and id(part) not in inside
                for part in ast.walk(self._edits.tree)
            )
            names = {
                name for statement, names in self._slices if statement in mine for name in names
            }
            if is_used_elsewhere or names != set(fitted):
                continue
            assert isinstance(node, ast.Call)
            self._shard_fit(node, fitted)
            for statement in mine:
                self._edits.remove_lines(statement)

    def _shard_fit(self, node: ast.Call, names: Sequence[str]) -> None:
        by_name = {keyword.arg: keyword for keyword in node.keywords}
        data = f"{', '.join(names)}, batch_size={self._edits.text(by_name['batch_size'].value)}"
        arguments = arguments_of(node)
        for position, part in enumerate(arguments):
            name = part.arg if isinstance(part, ast.keyword) else None
            if 0 < position < len(node.args) or name in ("batch_size", "steps_per_epoch"):
                self._edits.remove_item(arguments, position)
        self._edits.replace(arguments[0], f"tfddl.shard_dataset({data}, seed=1)")

    def _note_steps(self, node: ast.Call) -> None:
        steps = next((k for k in node.keywords if k.arg == "steps_per_epoch"), None)
        parts = [] if steps is None else list(ast.walk(steps.value))
        if any(isinstance(p, ast.Attribute) and self._path(p) is not None for p in parts):
            assert steps is not None
            self._note(steps, "with tfddl.shard_dataset, fit knows how many steps an epoch has")

    def _visit_rank_0(self, node: ast.AST) -> None:
        assert isinstance(node, ast.If)
        tests_rank = any(
            isinstance(part, ast.Call) and (self._path(part.func) or ("", ""))[1] == "rank"
            for part in ast.walk(node.test)
        )
        for part in ast.walk(node) if tests_rank else ():
            if (
                isinstance(part, ast.Call)
                and isinstance(part.func, ast.Attribute)
                and part.func.attr in ALL_RANKS
            ):
                self._note(part, f"{part.func.attr} on some ranks only: all ranks call it together")


def main(argv: Sequence[str]) -> int:
    """Prints the diff to stdout and what is left to stderr; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="tfddl-migrate",
        description="Show a Horovod script with tfddl's own API, as a diff for patch, and list "
        "what can't be decided. The script isn't changed.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("script", type=Path, help="the script")
    script: Path = accept_underscores(parser).parse_args(argv).script
    try:
        text = script.read_text()
        migration = Migration(text)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        parser.error(f"{script} can't be read as Python 3: {error}")
    before, after = (part.splitlines(keepends=True) for part in (text, migration.run()))
    names = (f"a/{script.name}", f"b/{script.name}")
    sys.stdout.writelines(difflib.unified_diff(before, after, *names))
    sys.stderr.writelines(f"{script}:{line}: {note}\n" for line, note in migration.notes)
    return 0


def run() -> None:
    """The console script."""
    # Whoever reads the diff may stop early (`| head`): end then as other commands do.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
