"""Ids of process sets, without other workers."""

from types import SimpleNamespace

import pytest

import tfddl
from tfddl._src import collectives
from tfddl._src.horovod import process_sets
from tfddl._src.horovod.process_sets import ProcessSet, add_process_set, remove_process_set
from tfddl.errors import UnsupportedError


@pytest.fixture(autouse=True)
def _job(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job of three, whose ranks agree."""
    runtime = SimpleNamespace(cluster=SimpleNamespace(rank=0, size=3))
    for module in (process_sets, collectives.process_sets):
        monkeypatch.setattr(module, "current", lambda: runtime)
    known = process_sets.Registered()
    known.is_initialized = known.is_dynamic = True
    monkeypatch.setattr(process_sets, "REGISTERED", SimpleNamespace(current=lambda: known))
    monkeypatch.setattr(process_sets, "is_started", lambda: True)
    monkeypatch.setattr(collectives, "barrier", lambda *, name: None)


def test_sets_of_the_same_ranks_are_the_same_set() -> None:
    plain = tfddl.ProcessSet([0, 2])
    added = add_process_set(plain)
    assert added.process_set_id == 1
    assert ProcessSet([2, 0]).process_set_id == 1
    with pytest.raises(UnsupportedError, match="has an id already"):
        add_process_set(ProcessSet([0, 2]))
    assert remove_process_set(plain)
    assert added.process_set_id is None
    assert not remove_process_set(plain)


@pytest.mark.parametrize("whole", [ProcessSet(), ProcessSet([0, 1, 2]), tfddl.ProcessSet()])
def test_the_set_of_all_keeps_its_id(whole: tfddl.ProcessSet) -> None:
    assert not remove_process_set(whole)
    assert ProcessSet().process_set_id == 0
    assert ProcessSet([0, 1, 2]).process_set_id is None  # As in Horovod, where it isn't this one.


def test_ranks_are_no_set_to_remove() -> None:
    with pytest.raises(UnsupportedError, match=r"process_set is \[0, 2\]; it must be a hvd.Proc"):
        remove_process_set([0, 2])  # type: ignore[arg-type]
