"""What workers keep in memory, and the command that measures it."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.group import ROOT, Groups
from tfddl.bench.jobs import MemoryConfig, row
from tfddl.bench.reading import EXAMPLE_BYTES, Reading, Way, check_all_were_read, write_examples
from tfddl.bench.table import span, table
from tfddl.bench.usage import Usage
from tfddl.errors import DataError

MB = 1e6


def test_workers_keep_a_few_batches_whatever_the_size_of_their_share(
    groups: Groups, tmp_path: Path
) -> None:
    num_examples = 5001
    write_examples(tmp_path, num_examples)
    found = groups(2).run("tests.cases.reading:keep", directory=str(tmp_path))
    share = num_examples / 2 * EXAMPLE_BYTES  # 69 MB; a batch is 0.4 MB
    for way in Way:
        readings = [of_rank[way] for of_rank in found]
        check_all_were_read(readings, num_examples)
        assert all(abs(r.examples - num_examples / 2) <= num_examples / 100 for r in readings)
        for reading in readings:
            if way is Way.HELD:
                assert 0.9 * share < reading.kept < 1.3 * share
            else:
                assert reading.kept <= reading.peak < 0.4 * share, way
                assert reading.mapped < 0.4 * share, way


def test_usage_is_what_the_process_holds(tmp_path: Path) -> None:
    before = Usage.now()
    held = np.ones(40 * 2**20, np.uint8)
    assert 38 * MB < Usage.now().kept - before.kept < 50 * MB
    np.save(tmp_path / "x.npy", held)
    del held
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert mapped.sum() == 40 * 2**20
    now = Usage.now()
    assert now.kept - before.kept < 10 * MB
    assert now.mapped - before.mapped > 38 * MB


def test_the_table() -> None:
    readings = [
        Reading(examples=1000, ids=0, kept=int(7.2e6), peak=int(9e6), mapped=0),
        Reading(examples=1100, ids=0, kept=int(5.1e6), peak=int(9e6), mapped=0),
    ]
    assert row(Way.GLOBAL, readings) == ["global", "2", "28..30", "5..7", "9", "0"]
    assert span([3.0]) == "3"
    lines = table(["way", "MB"], [["global", "7"], ["held", "2000"]]).splitlines()
    assert lines == ["way       MB", "global     7", "held    2000"]
    with pytest.raises(DataError, match="read 2100 examples instead of 2101"):
        check_all_were_read(readings, 2101)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"workers": (0,)}, r"workers is \(0,\); each must be at least 1"),
        ({"workers": ()}, "workers is"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"size_gb": 1e-5}, "less than an example for each worker"),
        ({"size_gb": 1e9}, "MB left, too little for a file of 1000000000.0 GB"),
    ],
)
def test_what_can_not_be_measured(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    given: dict[str, object] = {
        "size_gb": 0.01,
        "workers": (1,),
        "ways": (Way.BLOCK,),
        "batch_size": 8,
        "directory": tmp_path,
    }
    with pytest.raises(DataError, match=message):
        MemoryConfig(**{**given, **changed})  # type: ignore[arg-type]


@pytest.mark.long
def test_the_command_prints_a_table_and_leaves_nothing(tmp_path: Path) -> None:
    found = subprocess.run(
        [
            *(sys.executable, "-m", "tfddl.bench.memory", "--size=0.2", "--workers=1,2"),
            f"--directory={tmp_path}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert found.returncode == 0, found.stderr
    assert "7233 examples of 27648 bytes" in found.stdout
    rows = re.findall(r"^(\w+) +(\d) +(\S+) +(\S+) +(\S+) +(\S+)$", found.stdout, re.MULTILINE)
    assert [(way, workers) for way, workers, *_ in rows] == [
        (way, workers) for way in ("global", "block", "held") for workers in ("1", "2")
    ]
    for way, workers, share, kept, peak, _ in rows:
        shares, most = (int(text.split("..")[-1]) for text in (share, peak))
        assert abs(shares - 200 / int(workers)) <= 2
        if way == "held":
            assert abs(int(kept.split("..")[0]) - shares) < 20
        else:
            assert most < 40
    assert list(tmp_path.iterdir()) == []
