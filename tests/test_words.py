"""Prose: the field's terms instead of pictures, and no docstring that says nothing."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

PICTURES = (
    r"birth blows? borne contestants? crew doors? guests? houses? lobby lone ordeals? pacer rolls?",
    r"rooms? seats? stand-?ins? tall(y|ies) tellers? victims? weigh(s|ed|ing)?",
    r"gone\son\swith put\sup\swith takes?\sleave bear(s|ing)?\swith",
)
"""Words, and phrases with \\s between their words, for which Horovod, MPI or POSIX have a term."""

TRUE_USES = ("make room for", "makes room for", "np.roll", "tf.roll", "ops.roll")
"""Where such a word is the field's own."""

SHORTEST = 16
"""Characters of a docstring: "Begins." and "Where." say less than the name."""

_PICTURE = re.compile(
    rf"(?<![a-z])({'|'.join(' '.join(PICTURES).split())})(?![a-z])", re.IGNORECASE
)


def _files(*suffixes: str) -> list[Path]:
    files = [*(ROOT / "tfddl").rglob("*"), *(ROOT / "docs").rglob("*"), *ROOT.glob("*.md")]
    files = [path for path in files if path.suffix in suffixes]
    return sorted(files)


def _find_pictures(text: str) -> Iterator[tuple[int, str]]:
    """Line and word of each picture."""
    for use in TRUE_USES:
        text = text.replace(use, " " * len(use))
    for match in _PICTURE.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, match.group()


def _find_docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of each string that stands alone, those of attributes included."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if (
                isinstance(child, ast.Expr)
                and isinstance(child.value, ast.Constant)
                and isinstance(child.value.value, str)
            ):
                yield child.lineno, child.value.value


def test_no_pictures() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in _files(".py", ".md")
        for line, word in _find_pictures(path.read_text())
    ]
    assert not found, "\n".join(found)


def test_docstrings_say_something() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text!r}"
        for path in _files(".py")
        for line, text in _find_docstrings(ast.parse(path.read_text()))
        if len(text) < SHORTEST
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the lobby\nhas a Door", [(1, "lobby"), (2, "Door")]),
        ("a stand-in, standins; `has_stand_ins`", [(1, "stand-in"), (1, "standins")]),
        ("weighs by\nweight", [(1, "weighs")]),
        ("def _house(): np.roll(x); groom, outdoors", [(1, "house")]),
        ("is gone\non with", [(1, "gone\non with")]),
    ],
)
def test_pictures_are_found_as_words(text: str, words: list[tuple[int, str]]) -> None:
    assert list(_find_pictures(text)) == words
