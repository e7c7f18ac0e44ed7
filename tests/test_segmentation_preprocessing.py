"""`tfddl-prepare`: what it writes, what it leaves behind when it fails, what it says."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pictures import damage, make_pairs, save
from tests.processes import wait_until
from tfddl.errors import DataError, UnsupportedError
from tfddl.segmentation.config import PrepareConfig
from tfddl.segmentation.examples import open_examples
from tfddl.segmentation.preprocessing import prepare
from tfddl.segmentation.synthetic import write_dataset

FLAGS = [
    "image_size",
    "in_channels",
    "input_dir",
    "output_dir",
    "overwrite",
    "progress",
    "skip_bad",
    "threads",
]


def _config(directory: Path, **changes: Any) -> PrepareConfig:
    config = PrepareConfig(
        input_dir=directory / "files",
        output_dir=directory / "arrays",
        image_size=(6, 8),
        in_channels=3,
        skip_bad=False,
        overwrite=False,
        threads=3,
        progress="none",
    )
    return dataclasses.replace(config, **changes)


def _left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


ALL = ["images.npy", "masks.npy", "names.json"]


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_equal_the_decoded_files(tmp_path: Path, channels: int) -> None:
    write_dataset(tmp_path / "files", num_examples=11, image_size=(12, 16), seed=0)
    prepared = prepare(_config(tmp_path, in_channels=channels))
    assert prepared.num_examples == 11
    assert prepared.num_bytes == 11 * 6 * 8 * (channels + 1)
    assert prepared.left_out == ()
    assert _left(tmp_path / "arrays") == ALL
    size = {"image_size": (6, 8), "channels": channels}
    files, _ = open_examples(tmp_path / "files", **size)  # type: ignore[arg-type]
    arrays, _ = open_examples(tmp_path / "arrays", **size)  # type: ignore[arg-type]
    assert arrays.names == files.names
    for i in range(11):
        for from_array, from_file in zip(arrays.load(i), files.load(i), strict=True):
            np.testing.assert_array_equal(from_array, from_file)
    # Any reader of .npy takes them, and finds as many rows as there are names.
    assert np.load(tmp_path / "arrays" / "images.npy").shape == (11, 6, 8, channels)


def test_bad_files_are_all_named_and_nothing_is_written(tmp_path: Path) -> None:
    make_pairs(tmp_path / "files", *"123456")
    damage(tmp_path / "files" / "masks" / "2_mask.png", "truncated")
    save(tmp_path / "files" / "images" / "2.png", size=(64, 64))
    damage(tmp_path / "files" / "images" / "5.png", "no image")
    with pytest.raises(DataError) as caught:
        prepare(_config(tmp_path))
    lines = str(caught.value).splitlines()
    assert lines[0] == f"2 of the pairs in {tmp_path / 'files'} can't be used:"
    assert lines[1].startswith("  2: masks/2_mask.png can't be read: image file is truncated")
    assert lines[2].startswith("  5: images/5.png can't be read: cannot identify image file")
    assert _left(tmp_path / "arrays") == []

    (tmp_path / "files" / "masks" / "6_mask.png").unlink()
    prepared = prepare(_config(tmp_path, skip_bad=True))
    assert prepared.num_examples == 3
    assert [text[:2] for text in prepared.left_out] == ["6:", "2:", "5:"]
    assert np.load(tmp_path / "arrays" / "images.npy").shape == (3, 6, 8, 3)
    assert json.loads((tmp_path / "arrays" / "names.json").read_text()) == ["1", "3", "4"]


def test_overwrite_is_needed_to_replace_arrays(tmp_path: Path) -> None:
    make_pairs(tmp_path / "files", "1", "2")
    prepare(_config(tmp_path))
    with pytest.raises(
        DataError, match=r"arrays has masks\.npy and images\.npy and names\.json already\. HINT: ch"
    ):
        prepare(_config(tmp_path))
    (tmp_path / "files" / "images" / "2.png").unlink()
    (tmp_path / "files" / "masks" / "2_mask.png").unlink()
    assert prepare(_config(tmp_path, overwrite=True)).num_examples == 1
    assert json.loads((tmp_path / "arrays" / "names.json").read_text()) == ["1"]
    # A failure leaves the earlier set as it was.
    damage(tmp_path / "files" / "images" / "1.png", "no image")
    with pytest.raises(DataError, match="can't be used"):
        prepare(_config(tmp_path, overwrite=True))
    assert _left(tmp_path / "arrays") == ALL


def test_arrays_are_not_prepared_again(tmp_path: Path) -> None:
    make_pairs(tmp_path / "files", "1")
    prepare(_config(tmp_path))
    again = _config(tmp_path, input_dir=tmp_path / "arrays", output_dir=tmp_path / "more")
    with pytest.raises(DataError, match="arrays has arrays already: there is nothing to prepare"):
        prepare(again)


def test_an_unwritable_directory(tmp_path: Path) -> None:
    make_pairs(tmp_path / "files", "1")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/arrays can't be written: .*Not a directory"):
        prepare(_config(tmp_path, output_dir=tmp_path / "file" / "arrays"))


def test_a_full_disk(tmp_path: Path) -> None:
    """Stands for it: no file of the process may grow beyond 100 KB."""
    write_dataset(tmp_path / "files", num_examples=6, image_size=(96, 96), seed=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DataError, match="arrays can't be written: .*File too large"):
            prepare(_config(tmp_path, image_size=(96, 96)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert _left(tmp_path / "arrays") == []


def _start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    root = Path(__file__).parent.parent
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-c", "from tfddl.segmentation.prepare import run; run()", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _run(*arguments: str, cwd: Path) -> tuple[int, str, str]:
    with _start(*arguments, cwd=cwd) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_the_command_prints_a_summary_and_the_next_command(tmp_path: Path) -> None:
    make_pairs(tmp_path / "files", *(f"{i:02}" for i in range(20)))
    (tmp_path / "files" / "masks" / "07_mask.png").unlink()
    status, out, err = _run(
        "--input_dir=files", "--output_dir=arrays", "--image_size=6x8", "--skip_bad", cwd=tmp_path
    )
    assert status == 0
    assert err == (
        "tfddl-prepare: left out 07: no mask; expected masks/07_mask.png or masks/07.png\n"
    )
    lines = out.splitlines()
    assert lines[-2:] == [
        "tfddl: 19 examples of 6 x 8 x 3 (0 MB) in arrays",
        "tfddl: train on them with --data_dir=arrays --image_size=6x8 --in_channels=3",
    ]
    assert [line.split()[0] for line in lines[:-2]] == [f"{n}/19" for n in range(2, 20, 2)] + [
        "19/19"
    ]
    status, out, err = _run("--input_dir=files", "--output_dir=arrays", cwd=tmp_path)
    assert (status, out) == (1, "")
    assert err.startswith("tfddl-prepare: DataError: arrays has masks.npy and images.npy and names")
    assert "Traceback" not in err


def test_a_killed_process_leaves_no_usable_data_set(tmp_path: Path) -> None:
    write_dataset(tmp_path / "files", num_examples=40, image_size=(24, 24), seed=0)
    arrays = tmp_path / "arrays"
    arguments = ("--input_dir=files", "--output_dir=arrays", "--image_size=1024", "--threads=1")
    with _start(*arguments, cwd=tmp_path) as process:
        part = arrays / ".images.npy.partial"
        wait_until(lambda: part.exists() and part.stat().st_size > 1_000_000, timeout_s=60)
        process.kill()
        process.communicate(timeout=60)
    assert not set(_left(arrays)) & set(ALL)
    status, _, err = _run(*arguments, cwd=tmp_path)
    assert status == 1
    assert "masks.npy.partial exists: another tfddl-prepare writes to arrays, or one was" in err


def test_help_lists_its_flags(tmp_path: Path) -> None:
    status, out, _ = _run("--help", cwd=tmp_path)
    assert status == 0
    shown = out.replace("--[no]", "--")
    assert [name for name in FLAGS if f"--{name}:" not in shown] == []
    assert shown.count("\n  --") == len(FLAGS)
    assert sorted(field.name for field in dataclasses.fields(PrepareConfig)) == FLAGS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": (8, 0)}, r"--image_size is \(8, 0\); it must be positive\."),
        ({"in_channels": 2}, r"--in_channels is 2; it must be one of 1, 3, 4\."),
        ({"threads": 0}, r"--threads is 0; it must be at least 1\."),
        ({"progress": "x"}, r"--progress is x; it must be one of bar, lines, none\."),
    ],
)
def test_config_refuses(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=message):
        _config(tmp_path, **change)
