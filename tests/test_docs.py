"""The documentation is true as far as a test can tell: snippets run, texts and names are there."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import tfddl
import tfddl.ray
import tfddl.spark
from tests import error_texts
from tests.group import Groups
from tfddl._src.launcher.main import make_parser

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])

FOR_OTHER_PACKAGES = {"ray.md", "sagemaker.md", "spark.md"}
STARTS_WORKERS = DOCS / "engines" / "notebooks.md"
WITH_PYTHON = [
    page for page in PAGES if page != STARTS_WORKERS and "```python\n" in page.read_text()
]


def test_the_readme_is_one_screen() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_index_of_error_texts_is_current() -> None:
    hint = "HINT: python -m tests.error_texts"
    assert error_texts.PAGE.read_text() == error_texts.render(), hint


def test_quoted_messages_are_tfddls() -> None:
    """Each text in quotation marks of the troubleshooting page, between its "…"."""
    strings = []
    for path in (ROOT / "tfddl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                strings.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                values = [v.value if isinstance(v, ast.Constant) else "\0" for v in node.values]
                strings.append("".join(map(str, values)))
    said = "\n".join(strings)
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r'^### "([^"]+)"', page, flags=re.MULTILINE)
    assert len(quoted) > 5
    for text in quoted:
        for fragment in re.split(r"…|\d+", text):
            assert fragment.strip() in said, fragment


def test_every_public_name_is_in_the_reference() -> None:
    entries = set(re.findall(r"^::: (\S+)$", (DOCS / "reference.md").read_text(), re.MULTILINE))
    names = {f"tfddl.{name}" for name in tfddl.__all__} - {"tfddl.callbacks", "tfddl.debug"}
    names |= {f"tfddl.callbacks.{name}" for name in tfddl.callbacks.__all__}
    names |= {f"tfddl.debug.{name}" for name in tfddl.debug.__all__}
    names -= {"tfddl.callbacks.load_checkpoint"}  # It is tfddl.load_checkpoint.
    engines = {f"tfddl.spark.{name}" for name in tfddl.spark.__all__}
    engines |= {f"tfddl.ray.{name}" for name in tfddl.ray.__all__}
    assert entries == names | engines | {"tfddl.models.unet"}


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert named == {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_name_are_there(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text):
        assert (page.parent / link).exists(), link
    named = re.findall(r"`((?:tests|launch|examples|tfddl)/[\w./]+\.\w+)`", text)
    named += re.findall(r"\./(launch/[a-z]+\.sh)", text)
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize(
    "page", sorted({*WITH_PYTHON} - {STARTS_WORKERS}), ids=lambda page: page.name
)
def test_python_snippets_run(groups: Groups, page: Path) -> None:
    """On two workers; what fails names the page and its line."""
    case = "tests.cases.snippets:run"
    counts = groups(2).run(case, page=str(page.relative_to(ROOT)), timeout_s=120)
    assert counts[0] == counts[1]
    assert counts[0] > 0 or page.name in FOR_OTHER_PACKAGES


def test_the_function_of_the_notebooks_page_runs(tmp_path: Path) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", STARTS_WORKERS.read_text(), flags=re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", lines + "print(results)"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[0, 1]"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_are_understood(page: Path) -> None:
    """Every `tfddlrun` line: its flags are there, and their values are accepted."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if "tfddlrun" in words and words[0] != "pip":
                argv = words[words.index("tfddlrun") + 1 :]
                assert make_parser("tfddlrun").parse_args(argv) is not None, line
