"""What was measured: rows of tables, and the file of ``--json``.

docs/performance.md describes the keys of the file; they stay what they are, so that files of
different versions can be compared.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfddl.errors import DataError

PLAIN, SINGLE = "plain Keras", "plain Keras, one process"
STRATEGY = "TensorFlow's strategy"
"""What may stand in the label "by", beside the names of tfddl's process groups."""

RATIOS = "ratio", "over_strategy"
"""Values over a baseline of the same run: only these can be compared between runs."""

Labels = dict[str, str | int]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        table: its name.
        labels: say what was measured: no two rows of a table have the same.
        values: what came out; a name ends in its unit, if there is one. What can't be measured in
            this case isn't there.
    """

    table: str
    labels: Labels
    values: Mapping[str, float]


@dataclasses.dataclass(kw_only=True)
class Results:
    """All rows; `add` takes in what a job reports."""

    rows: list[Row] = dataclasses.field(default_factory=list)
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def add(self, other: "Results") -> None:
        """Takes in another's measurements."""
        self.rows += other.rows
        self.versions |= other.versions

    def table(self, name: str, **labels: str | int) -> list[Row]:
        """The rows of a table that have these labels."""
        rows = [row for row in self.rows if row.table == name]
        return [row for row in rows if labels.items() <= row.labels.items()]

    def to_json(self) -> dict[str, Any]:
        """Plain values, which `from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> "Results":
        """Reads what `to_json` made."""
        return cls(**{**plain, "rows": [Row(**row) for row in plain["rows"]]})


def write_json(results: Results, path: Path) -> None:
    """Writes the file of ``--json``."""
    path.write_text(json.dumps(results.to_json(), indent=1, default=str) + "\n")


def read_json(path: Path) -> Results:
    """Reads what `write_json` wrote; raises DataError where it is something else."""
    try:
        return Results.from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no file of --json: {error!r}. HINT: --diff takes two that --json wrote"
        ) from error


def ratios(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Values over those of a baseline that was measured in alternation with them.

    Each is divided by its neighbour in time, so that what slows the machine for a while slows both.
    """
    return [value / base for value, base in zip(values, baseline, strict=True)]
