"""All commands: --version, and flags with dashes or with underscores."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from absl import app

import tfddl
from tests.group import ROOT
from tfddl._src.command_line import absl_arguments
from tfddl._src.launcher import main as launcher
from tfddl.segmentation import train

SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]

# By command, a line with a value that is refused, and what is said of it.
MISTAKES = {
    "tfddlrun": ("-np 1 --max-restarts=-1 true", "--max-restarts is -1; it must be 0 or more"),
    "tfddl-horovodrun": (
        "-np 1 --stall-check-warning-time-seconds=-1 true",
        "--stall-check-warning-time-seconds is -1.0; it must be 0 (never) or more seconds",
    ),
    "tfddl-migrate": ("none.py", "none.py can't be read as Python 3"),
    "tfddl-doctor": ("--start-timeout=0", "--start-timeout is 0.0; it must be above 0 seconds"),
    "tfddl-bench": ("--round-seconds=x", "argument --round-seconds: invalid float value: 'x'"),
    "tfddl-predict": (
        "--model=m --input-dir=a --output-dir=b --batch-size=0",
        "--batch_size is 0; it must be at least 1",
    ),
    "tfddl-prepare": (
        "--input-dir=a --output-dir=b --no-skip-bad --in-channels=2",
        "--in_channels is 2; it must be one of 1, 3, 4",
    ),
    "tfddl-train": ("--no-resume --batch-size=0", "--batch_size is 0; it must be at least 1"),
}


def _run(name: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    module, _, function = SCRIPTS[name].partition(":")
    script = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; {function}()"
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_command_has_a_version_and_takes_both_spellings(name: str, tmp_path: Path) -> None:
    done = _run(name, "--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"{name} {tfddl.__version__}\n")
    line, message = MISTAKES[name]
    for spell in (str, lambda flag: flag.replace("-", "_")):
        words = []
        for word in line.split():
            flag, equals, value = word.partition("=")
            words.append(f"--{spell(flag[2:])}{equals}{value}" if word.startswith("--") else word)
        done = _run(name, *words, cwd=tmp_path)
        assert done.returncode != 0
        assert message in done.stderr, words
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_both_spellings_are_one_flag_of_argparse() -> None:
    parser = launcher.make_parser("x")
    names = parser._option_string_actions
    flags = [flag for action in parser._actions for flag in action.option_strings]
    for flag in flags:
        if flag.startswith("--"):
            assert names[f"--{flag[2:].replace('-', '_')}"] is names[flag]
    assert not [flag for flag in flags if "_" in flag]  # --help shows one spelling


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["x", "--batch-size=4"], ["x", "--batch_size=4"]),
        (["--batch-size", "4", "--data_dir=a-b"], ["--batch_size", "4", "--data_dir=a-b"]),
        (["--no-skip-bad", "--no_skip_bad"], ["--noskip_bad", "--noskip_bad"]),
        (["--no-such"], ["--no_such"]),
        (["-a-b", "c-d", "--a-b", "--", "--c-d"], ["-a-b", "c-d", "--a_b", "--", "--c-d"]),
        ([], []),
    ],
)
def test_arguments_for_absl(words: list[str], expected: list[str]) -> None:
    assert absl_arguments(words, booleans={"skip_bad"}) == expected


def test_both_spellings_in_a_file_of_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flags").write_text("--batch-size=3\n--no-resume\n--keep=2\n")
    given: list[list[str]] = []
    monkeypatch.setattr(app, "run", lambda main, argv: given.append(argv))
    for name, expected in (
        ("flags", ["x", "--batch_size=3", "--noresume", "--keep=2", "--seed=1"]),
        ("none", ["x", f"--flagfile={tmp_path}/none", "--seed=1"]),
    ):
        monkeypatch.setattr(sys, "argv", ["x", f"--flagfile={tmp_path}/{name}", "--seed=1"])
        train.run()
        assert given.pop() == expected
