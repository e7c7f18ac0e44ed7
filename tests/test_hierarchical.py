"""Shared memory within hosts, and TCP or TensorFlow's collectives between them.

Addresses of this machine stand for hosts: 127.0.0.1, 127.0.0.2.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import virtual_problem
from tests.group import Groups
from tests.one_process import in_one_process
from tfddl._src.comm.instrumentation import Instrumentation
from tfddl._src.comm.native import Network, PeerConfig
from tfddl._src.comm.native.mesh import Mesh
from tfddl._src.comm.native.shm import SharedMemory
from tfddl._src.comm.native.shm_backend import ShmBackend
from tfddl._src.comm.native_group import connect_natively

CASES = "tests.cases.collective_tables"
TCP: dict[str, Any] = {"collective": "auto"}
RING: dict[str, Any] = {"collective": "auto", "between_hosts": "ring"}
HOSTS = pytest.mark.parametrize(
    ("hosts", "init"),
    [
        ((2, 1), TCP),
        pytest.param((1, 1, 1), TCP, marks=pytest.mark.long),
        pytest.param((2, 2), TCP, marks=pytest.mark.long),
        pytest.param((2, 1), RING, marks=pytest.mark.long),
        pytest.param((2, 2), RING, marks=pytest.mark.long),
    ],
    ids=lambda value: value.get("between_hosts", "tcp") if isinstance(value, dict) else str(value),
)


@HOSTS
def test_every_operation_and_dtype(
    groups: Groups, hosts: tuple[int, ...], init: dict[str, Any]
) -> None:
    group = groups(sum(hosts), hosts=hosts, **init)
    assert all(group.run(f"{CASES}:every_dtype", every=41, timeout_s=170))
    between = "RING" if init is RING else "TCP"
    names = {1: f"none (one worker), {between} between hosts"}
    names[2] = f"shared memory, {between} between hosts"
    if max(hosts) == 1:
        names = {1: between}
    expected = [names[count] for count in hosts for _ in range(count)]
    assert group.run("tests.cases.collectives:group_name") == expected
    # All count alike, so that the one that others wait for can be found.
    launched = 1 if max(hosts) == 1 else 2  # One more compares the calls.
    assert group.run("tests.cases.collectives:launched") == [launched] * sum(hosts)


def test_ranks_that_disagree_say_so_and_go_on(groups: Groups) -> None:
    group = groups(3, hosts=(2, 1), **TCP)
    for found in group.run("tests.cases.disagreements:eager", names=["shape"]):
        kinds, text = found["shape"]
        assert kinds == ["FailedPrecondition", "Disagreement"]
        assert "ranks 0..1: " in text
    first, beside, last = group.run("tests.cases.disagreements:subset")  # Ranks 0 and 2.
    assert beside == ([], "3.0")
    assert first == last
    assert "among ranks 0, 2 of float32 (2)" in first[1]


def test_sums_over_virtual_workers_are_those_of_one_process(groups: Groups) -> None:
    v = [virtual_problem.values(worker) for worker in range(5)]
    expected = [(((a + b) + (c + d)) + e).tobytes() for a, b, c, d, e in zip(*v, strict=True)]
    assert expected != [sum(of_all[1:], of_all[0]).tobytes() for of_all in zip(*v, strict=True)]
    group = groups(3, hosts=(2, 1), **TCP)
    assert group.run("tests.cases.virtual_workers:sums", virtual_workers=5) == [expected] * 3


def test_fit_is_that_of_one_process(groups: Groups, tmp_path: Path) -> None:
    """With more weights than a message between hosts has room for, and shards that differ."""
    spec = {
        **{"n": 17, "n_val": 5, "batch_size": 2, "epochs": 2, "seed": 5, "units": 4000},
        **{"loss": "mse", "optimizer": "sgd", "learning_rate": 1e-4},
    }
    ranks = groups(3, hosts=(2, 1), **TCP).run("tests.cases.training:train", spec=spec)
    steps: list[list[int]] = [
        sum(parts, []) for parts in zip(*(rank["seen"] for rank in ranks), strict=True)
    ]
    assert [len(step) for step in steps] == [6, 6, 5] * 2
    [one] = in_one_process([(spec, [steps[:3], steps[3:]])], tmp_path)
    for rank in ranks:
        assert rank["weights"].keys() == one["weights"].keys()
        for path, expected in one["weights"].items():
            difference = np.abs(rank["weights"][path] - expected).max() / np.abs(expected).max()
            assert difference <= 1e-5, path
            assert rank["weights"][path].tobytes() == ranks[0]["weights"][path].tobytes()
        assert rank["history"].keys() == one["history"].keys()
        for key, values in one["history"].items():
            np.testing.assert_allclose(rank["history"][key], values, rtol=1e-5, err_msg=key)


@pytest.mark.long
@HOSTS
def test_training_is_that_of_one_level(
    groups: Groups, hosts: tuple[int, ...], init: dict[str, Any]
) -> None:
    size = sum(hosts)
    arguments: dict[str, Any] = {"kind": "sequential", "options": {}}
    ranks = groups(size, hosts=hosts, **init).run("tests.cases.scope:both_apis", **arguments)
    ring = groups(size, collective="ring").run("tests.cases.scope:both_apis", **arguments)
    for rank in ranks:
        for a, b in zip(rank["weights"][0], ring[0]["weights"][0], strict=True):
            assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
        for a, b in zip(rank["weights"][1], ranks[0]["weights"][1], strict=True):
            assert a.tobytes() == b.tobytes()


def test_a_set_of_ranks_has_one_group_however_it_is_reached() -> None:
    """Two would take each other's messages."""
    mesh = Mesh(PeerConfig(job="", rank=0, size=4), {})
    make_backend = functools.partial(ShmBackend, mesh, memory=SharedMemory())
    everyone = connect_natively(Network("memory", mesh, make_backend), Instrumentation(4))
    assert everyone.subgroup((0, 1, 3)).subgroup((0, 2)) is everyone.subgroup((0, 3))
    assert everyone.subgroup((0, 3)) is not everyone.subgroup((0, 2))


@pytest.mark.long
def test_only_leaders_speak_between_hosts(groups: Groups) -> None:
    """The bytes between two hosts don't grow with the workers of each."""
    one = groups(2, hosts=(1, 1), collective="ring").run("tests.cases.collectives:sent", n=100_000)
    three = groups(3, hosts=(2, 1), **RING).run("tests.cases.collectives:sent", n=100_000)
    assert three[1] == 0  # Not the first of its host.
    assert three[0] == three[2] == one[0] == one[1] > 0
