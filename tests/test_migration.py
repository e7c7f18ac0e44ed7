"""`tfddl-migrate`: diffs of small scripts, and of Horovod's own kind of scripts as a whole."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.group import ROOT
from tfddl._src.horovod.migration import Migration, main

KERAS = "import horovod.tensorflow.keras as hvd\n"
LOOP = "import horovod.tensorflow as hvd\n"
KEPT = "import tfddl\nimport tfddl.horovod.tensorflow.keras as hvd\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (KERAS + "hvd.init()\nr = hvd.rank\n", "import tfddl\ntfddl.init()\nr = tfddl.rank\n"),
        (
            LOOP + "y = hvd.allreduce(x, op=hvd.Sum)\n",
            "import tfddl\ny = tfddl.allreduce(x, op=tfddl.ReduceOp.SUM)\n",
        ),
        (
            "from horovod.tensorflow import keras as hvd\nn = hvd.broadcast(n, 0, name='n')\n",
            "import tfddl\nn = tfddl.broadcast_object(n, 0, name='n')\n",
        ),
        # The optimizer: arguments without effect go, others keep it Horovod's.
        (
            KERAS + "o = hvd.DistributedOptimizer(o, name='a', compression=hvd.Compression.fp16)\n",
            "import tfddl\no = tfddl.DistributedOptimizer(o, compression=tfddl.Compression.FP16)\n",
        ),
        (
            KERAS + "o = hvd.DistributedOptimizer(o, backward_passes_per_step=1)\n",
            "import tfddl\no = tfddl.DistributedOptimizer(o)\n",
        ),
        (
            KERAS + "o = hvd.DistributedOptimizer(o, backward_passes_per_step=2)\n",
            KEPT + "o = hvd.DistributedOptimizer(o, backward_passes_per_step=2)\n",
        ),
        # Callbacks that fit doesn't need, with the comments that belong to them.
        (
            KERAS + "c = [\n    # All start alike.\n"
            "    hvd.callbacks.BroadcastGlobalVariablesCallback(0),  # this\n"
            "    # Mine.\n    mine,\n]\n",
            "import tfddl\nc = [\n    # Mine.\n    mine,\n]\n",
        ),
        (
            KERAS + "c = [hvd.callbacks.MetricAverageCallback(), mine]\n",
            "import tfddl\nc = [mine]\n",
        ),
        (
            KERAS + "c = [mine, hvd.callbacks.MetricAverageCallback()]\n",
            "import tfddl\nc = [mine]\n",
        ),
        (
            KERAS + "c = [hvd.callbacks.BroadcastGlobalVariablesCallback(0), "
            "hvd.callbacks.MetricAverageCallback()]\n",
            "import tfddl\nc = []\n",
        ),
        (
            KERAS + "c.append(hvd.callbacks.MetricAverageCallback())\nd = 1\n",
            "import tfddl\nd = 1\n",
        ),
        (
            KERAS + "c = [hvd.callbacks.BroadcastGlobalVariablesCallback(1)]\n",
            KEPT + "c = [hvd.callbacks.BroadcastGlobalVariablesCallback(1)]\n",
        ),
        (
            KERAS + "hvd.callbacks.LearningRateWarmupCallback(0.1, warmup_epochs=3)\n",
            "import tfddl\ntfddl.callbacks.LearningRateWarmup(0.1, warmup_epochs=3)\n",
        ),
        (
            KERAS + "hvd.callbacks.LearningRateWarmupCallback(warmup_epochs=3)\n",
            KEPT + "hvd.callbacks.LearningRateWarmupCallback(warmup_epochs=3)\n",
        ),
        # Shards.
        (
            KERAS + "x = x[hvd.rank()::hvd.size()]\ny = y[hvd.rank()::hvd.size()]\n"
            "m.fit(x, y, epochs=2, batch_size=8, steps_per_epoch=9)\n",
            "import tfddl\nm.fit(tfddl.shard_dataset(x, y, batch_size=8, seed=1), epochs=2)\n",
        ),
        (
            KERAS + "x = x[hvd.rank()::hvd.size()]\nm.fit(x, z, batch_size=8)\n",
            "import tfddl\nx = x[tfddl.rank()::tfddl.size()]\nm.fit(x, z, batch_size=8)\n",
        ),
        (
            KERAS + "x = x[hvd.rank()::hvd.size()]\nm.fit(x, batch_size=8)\nm.predict(x)\n",
            "import tfddl\nx = x[tfddl.rank()::tfddl.size()]\nm.fit(x, batch_size=8)\n"
            "m.predict(x)\n",
        ),
        # Keras 2, and what is indented.
        (
            KERAS + "m.compile(SGD(lr=0.1), 'mse', experimental_run_tf_function=False)\n",
            "import tfddl\nm.compile(SGD(learning_rate=0.1), 'mse')\n",
        ),
        (
            "if yes:\n    import horovod.keras as hvd\n    hvd.init(); hvd.join()\n",
            "if yes:\n    import tfddl\n    import tfddl.horovod.keras as hvd\n"
            "    tfddl.init(); hvd.join()\n",
        ),
        (
            "é = 'é'; import horovod.keras as hvd; hvd.init()\n",
            "é = 'é'; import tfddl; tfddl.init()\n",
        ),
    ],
)
def test_small_scripts(before: str, after: str) -> None:
    assert Migration(before).run() == after


@pytest.mark.parametrize(
    ("script", "line", "note"),
    [
        ("from horovod.keras import rank\n", 1, "this import stays Horovod's"),
        (KERAS + "\nhvd.load_model(p)\n", 3, "hvd.load_model stays Horovod's: keras.models"),
        (KERAS + "hvd.allreduce(1.0)\n", 2, "it returns NumPy, tfddl's tensors"),
        (LOOP + "hvd.allreduce(x, average=False)\n", 2, "hvd.allreduce stays Horovod's"),
        (KERAS + "K.set_session(s)\n", 2, "set_session isn't needed"),
        (LOOP + "d = d.shard(hvd.size(), hvd.rank())\n", 2, "tfddl.shard_dataset(dataset, batch"),
        (KERAS + "m.fit(d,\n steps_per_epoch=9 // hvd.size())\n", 3, "knows how many steps"),
        (KERAS + "if hvd.rank() == 0:\n  m.evaluate(x)\n", 3, "evaluate on some ranks only"),
        (KERAS + "hvd.DistributedOptimizer(o)\n", 2, "weights ranks by their examples"),
        (LOOP + "v = o.variables()\n", 2, "optimizer.variables, without the brackets"),
    ],
)
def test_what_can_not_be_decided_is_listed(script: str, line: int, note: str) -> None:
    migration = Migration(script)
    migration.run()
    assert [where for where, text in migration.notes if note in text] == [line], migration.notes


SCRIPTS = sorted((ROOT / "tests/scripts/horovod").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_whole_scripts_are_python_and_lose_nothing_of_their_own(script: Path) -> None:
    migration = Migration(script.read_text())
    found = migration.run()
    names = {node.id for node in ast.walk(ast.parse(found)) if isinstance(node, ast.Name)}
    imports = "import tfddl.horovod" in found or "from horovod" in found
    assert ("hvd" in names) <= imports
    lines = found.splitlines()
    for line in script.read_text().splitlines():
        if not re.search(r"\b(hvd|hk|hvd_keras)\b|horovod", line, re.IGNORECASE):
            is_old_keras = "lr=" in line or "experimental" in line
            is_comment = line.lstrip().startswith("#")
            assert line in lines or is_old_keras or is_comment, line


def test_the_command_prints_a_diff_and_notes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    script = ROOT / "examples/horovod_script.py"
    before = script.read_text()
    assert main([str(script)]) == 0
    printed = capsys.readouterr()
    assert script.read_text() == before
    assert "+    tfddl.shard_dataset(x, y, batch_size=32, seed=1),\n" in printed.out
    assert f"{script}:24: tfddl's optimizer weights ranks" in printed.err
    (tmp_path / "horovod_script.py").write_text(before)
    patch = ["patch", "-p1", "--quiet", "-d", str(tmp_path)]
    subprocess.run(patch, input=printed.out, text=True, check=True, timeout=30)
    assert (tmp_path / "horovod_script.py").read_text() == Migration(before).run()


def test_what_is_no_script_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text("print 'Python 2'\n")
    for name in ("old.py", "none.py"):
        with pytest.raises(SystemExit, match="2"):
            main([str(tmp_path / name)])
        assert f"{name} can't be read as Python 3" in capsys.readouterr().err


def test_it_loads_no_tensorflow() -> None:
    code = "import sys; import tfddl._src.horovod.migration; assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_a_reader_that_stops_early_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import horovod.tensorflow.keras as hvd\nhvd.init()\n")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", "from tfddl._src.horovod.migration import run; run()", "script.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, "Traceback" in done.stderr) == (-signal.SIGPIPE, False)
