"""docs/horovod-compatibility.md: it names all that Horovod has, and what it says of each is so."""

import importlib
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from tests.group import ROOT
from tests.horovod_inventory import FLAGS, MODULES, SUBMODULES, VARIABLES
from tfddl._src.horovod import settings
from tfddl._src.launcher import horovodrun_flags
from tfddl._src.launcher.main import make_parser
from tfddl.errors import UnsupportedError

PAGE = ROOT / "docs" / "horovod-compatibility.md"
STATES = ("works", "no effect", "error", "not there")
OTHERS = {
    "Other modules": SUBMODULES.split(),
    "Flags of `horovodrun`": FLAGS.split(),
    "Environment variables": [f"HOROVOD_{name}" for name in VARIABLES.split()],
}


def _read_page() -> dict[str, dict[str, str]]:
    """By section: what it says of each name."""
    sections: dict[str, dict[str, str]] = {}
    for part in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        found = sections.setdefault(title, {})
        for names, state in re.findall(r"^\| (`.*?) \| ([\w ]+) \|", text, re.MULTILINE):
            assert state in STATES, f"{title}: {names} is {state!r}"
            for name in re.findall(r"`([^`]+)`", names):
                assert name not in found, f"{title}: {name} is there twice"
                found[name] = state
    return sections


SAID = _read_page()
INVENTORY = {**{f"`{name}`": names.split() for name, names in MODULES.items()}, **OTHERS}


def test_every_name_is_on_the_page() -> None:
    assert {title: sorted(names) for title, names in SAID.items()} == {
        title: sorted(names) for title, names in INVENTORY.items()
    }


def _state_of(module: Any, name: str) -> str:
    try:
        value = getattr(module, name)
    except UnsupportedError:
        return "error"
    except AttributeError:
        return "not there"
    is_refused = (inspect.getdoc(value) or "").startswith("Not supported")
    return "error" if is_refused else "works"


@pytest.mark.parametrize("module", MODULES)
def test_names_do_what_the_page_says(module: str) -> None:
    homes = [importlib.import_module(f"tfddl.{module}")]
    if module.startswith("horovod.keras"):
        modern = module.replace("horovod", "horovod.tensorflow", 1)
        homes.append(importlib.import_module(f"tfddl.{modern}"))
    for home in homes:
        found = {name: _state_of(home, name) for name in MODULES[module].split()}
        assert found == SAID[f"`{module}`"]


def test_modules_are_there_as_the_page_says() -> None:
    found = {}
    for name in SUBMODULES.split():
        spec = importlib.util.find_spec(f"tfddl.horovod.{name}")
        found[name] = "not there" if spec is None else "works"
    assert found == SAID["Other modules"]


def test_flags_do_what_the_page_says() -> None:
    accepted = make_parser("tfddl-horovodrun")._option_string_actions
    refused, without = horovodrun_flags._REFUSED, horovodrun_flags._NO_EFFECT
    found = {
        flag: "error"
        if flag in refused
        else "no effect"
        if flag in without
        else "works"
        if flag in accepted
        else "not there"
        for flag in FLAGS.split()
    }
    assert found == SAID["Flags of `horovodrun`"]


def test_variables_are_read_or_set_as_the_page_says() -> None:
    places = ("_src/horovod/settings.py", "_src/launcher/horovod_environment.py")
    text = "".join((Path(ROOT / "tfddl") / place).read_text() for place in places)
    found = {
        name: "works"
        if name not in settings._WITHOUT_EFFECT and re.search(rf'"{name}"', text)
        else "no effect"
        for name in OTHERS["Environment variables"]
    }
    assert found == SAID["Environment variables"]
