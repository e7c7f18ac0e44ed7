"""The command that measures what goes between hosts."""

import os
import re
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.hosts import two_hosts
from tfddl._src.cluster import Cluster
from tfddl._src.cluster.environments import tf_config
from tfddl.bench.streams import Receiver, send

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-W", "ignore", "-m", "tfddl.bench.between")
TIMEOUT_S = 170


def _environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", **variables}


def test_a_stream_carries_bytes() -> None:
    receiver = Receiver()
    port = receiver.port
    thread = threading.Thread(target=receiver.receive, args=(10_000_000,))
    thread.start()
    assert send("127.0.0.1", port, 10_000_000) > 0
    thread.join(timeout=20)
    with pytest.raises(OSError, match="refused"):  # It is closed.
        send("127.0.0.1", port, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--try_pieces=1,17"], "--try_pieces is ['1', '17']; it must be like 1,4,8: 1 to 16."),
        (["--models=vgg"], "--models has vgg; it must be of unet, resnet50, mlp."),
        (["--sizes=many"], "'many' is no size"),
        ([], "all workers are on"),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.long
def test_what_a_host_sends_does_not_grow_with_its_workers() -> None:
    """Counted at the cable between two network namespaces, while a model of 2 MB is trained."""
    with two_hosts() as names:
        one, two = _measured(names, workers=1), _measured(names, workers=2)
    assert "2 workers on 2 hosts, TCP.\n" in one
    assert "4 workers on 2 hosts, shared memory, TCP between hosts.\n" in two
    assert re.search(r"^One TCP stream carries \d+\.\d\d GB/s", one, re.MULTILINE)
    assert "| 1 MiB | " in one
    before, after = _sent_mb(one), _sent_mb(two)
    assert len(before) == len(after) == 2
    for host_before, host_after in zip(before, after, strict=True):
        assert 1.8 < host_before
        assert host_after < 1.1 * host_before  # Headers, heartbeats.


def _measured(names: tuple[str, str], *, workers: int) -> str:
    """What rank 0 prints, of so many workers in each namespace."""
    addresses = tuple(f"10.77.0.{h}:{24000 + w}" for h in (1, 2) for w in range(workers))
    quickly = ["--sizes=1M", "--try_pieces=1,2", "--models=unet", "--image_size=32"]
    with ExitStack() as stack:
        processes = []
        for rank in range(len(addresses)):
            inside = ["ip", "netns", "exec", names[rank // workers]]
            process = subprocess.Popen(
                [*inside, *COMMAND, *quickly, "--rounds=1", "--seconds=0"],
                env=_environment(TF_CONFIG=tf_config.render(Cluster(addresses, rank))),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        texts = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), texts
    assert [out for out, _ in texts[1:]] == [""] * (len(processes) - 1)
    return texts[0][0]


def _sent_mb(text: str) -> list[float]:
    (row,) = [line for line in text.splitlines() if line.startswith("| unet |")]
    return [float(number) for number in row.split("|")[-2].removesuffix(" MB ").split(",")]
