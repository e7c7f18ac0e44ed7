"""Writes docs/errors.md, the index of error texts: ``python -m tests.error_texts``."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "errors.md"
_HEAD = """\
---
search:
  boost: 4
---

# Error texts

Every text of tfddl's errors that is spelled in one place, by class, for the search of this page;
"…" stands for what differs: a rank, a name, a number. What most of them come from, and what to do,
is in [troubleshooting](troubleshooting.md). Each class is in `tfddl.errors`, and also inherits the
builtin exception in parentheses. This page is written by `python -m tests.error_texts`.

While a `tf.function` runs, as in the steps of `fit`, TensorFlow keeps only the text of Python's
exceptions: a rank that is dead or missing is a `tf.errors.UnknownError` there, ranks that call
different operations (DisagreementError) a `tf.errors.InvalidArgumentError`. Catch these.
"""


def render() -> str:
    """The page, from the sources."""
    classes = _read_classes()
    texts = defaultdict(set)
    for path in (ROOT / "tfddl").rglob("*.py"):
        for name, text in _find_texts(ast.parse(path.read_text()), classes):
            texts[name].add(text)
    parts = [_HEAD]
    for name, (bases, doc) in classes.items():
        if texts[name]:
            parts.append(f"## {name} ({bases})\n\n{doc}\n")
            parts.append("\n".join(f"* {text}" for text in sorted(texts[name])) + "\n")
    return "\n".join(parts)


def _read_classes() -> dict[str, tuple[str, str]]:
    """Of each error class, its builtin bases and the first line of its docstring."""
    tree = ast.parse((ROOT / "tfddl" / "errors.py").read_text())
    found = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = ", ".join(base.id for base in node.bases[1:] if isinstance(base, ast.Name))
            found[node.name] = (
                bases or "Exception",
                (ast.get_docstring(node) or "").split("\n")[0],
            )
    return found


def _find_texts(tree: ast.Module, classes: dict[str, tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Class and text of each error that is made with a text of its own."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
            continue
        text = _text(node.args[0])
        if node.func.id in classes and text.replace("…", "").strip():
            yield node.func.id, text


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    elif isinstance(node, ast.JoinedStr):
        pieces = (v.value if isinstance(v, ast.Constant) else "…" for v in node.values)
        text = "".join(map(str, pieces))
    else:
        return ""
    for character in "\\`*_<>[]#|":  # As text, not as Markdown.
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(render())
