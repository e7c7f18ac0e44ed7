"""The tool that puts defects in: which ones, and that each is one."""

import ast
from pathlib import Path

from tests.mutate import EQUIVALENT, TESTS, mutants

ROOT = Path(__file__).resolve().parent.parent
SOURCE = '''"""A module."""

@dataclass(frozen=True)
class Box:
    """Says 1 < 2."""

    size: int = 3

    def fits(self, count: int) -> bool:
        assert count > 0
        if not self.is_open or count < self.size:
            self.log(f"{count + 1}")
            return False
        count += 2
        return None
'''
DEFECTS = [
    "m: Box: 3 -> 4",
    "m: Box.fits: not self.is_open or count < self.size -> count < self.size",
    "m: Box.fits: not self.is_open or count < self.size -> not self.is_open",
    "m: Box.fits: not self.is_open -> self.is_open",
    "m: Box.fits: count < self.size -> count <= self.size",
    "m: Box.fits: count < self.size -> count >= self.size",
    "m: Box.fits: if not self.is_open or count < self.size: -> "
    "if not (not self.is_open or count < self.size):",
    "m: Box.fits: self.log(f'{count + 1}') -> pass",
    "m: Box.fits: return False -> return None",
    "m: Box.fits: False -> True",
    "m: Box.fits: count += 2 -> count -= 2",
    "m: Box.fits: 2 -> 3",
]


def test_the_defects_of_a_module() -> None:
    found = mutants(SOURCE, "m")
    assert sorted(mutant.name for mutant in found) == sorted(DEFECTS)
    sources = {mutant.source for mutant in found}
    assert len(sources) == len(found)
    assert ast.unparse(ast.parse(SOURCE)) not in sources
    for mutant in found:
        ast.parse(mutant.source)
    lines = SOURCE.splitlines()
    (log,) = [mutant for mutant in found if "self.log" in mutant.name]
    assert "self.log" in lines[log.line - 1]


def test_what_is_called_equivalent_is_a_defect_with_a_reason() -> None:
    """Where the code has changed since, it has to be looked at anew."""
    lines = EQUIVALENT.read_text().splitlines()
    assert lines == sorted(set(lines))
    for module in TESTS:
        source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()
        names = {mutant.name for mutant in mutants(source, module, with_source=False)}
        mine = [line for line in lines if line.startswith(f"{module}: ")]
        for name, _, reason in (line.partition("  # ") for line in mine):
            assert name in names, name
            assert reason, name
        lines = [line for line in lines if line not in mine]
    assert not lines, "of no module that is measured"
