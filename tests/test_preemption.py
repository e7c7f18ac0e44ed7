"""Requests to save where two take them, one within the other."""

import types

import pytest

from tfddl._src.callbacks import preemption
from tfddl._src.callbacks.preemption import Preemption
from tfddl._src.heartbeat import ProgressPage, WorkerFlags


def test_the_inner_one_leaves_requests_to_the_outer(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `fit` with a `Checkpoint` within `hvd.elastic.run`."""
    page = ProgressPage(None)
    runtime = types.SimpleNamespace(progress_page=page, sigterm_handler=None)
    monkeypatch.setattr(preemption, "current", lambda: runtime)
    outer, inner = Preemption(), Preemption()
    outer.listen()
    for _ in range(2):
        inner.listen()
        inner.listen()
        inner.stop_listening(handled=False)
        assert WorkerFlags.SAVES_ON_REQUEST in page.read().flags
        assert runtime.sigterm_handler is not None
    outer.stop_listening(handled=False)
    assert not page.read().flags
    inner.listen()
    assert WorkerFlags.SAVES_ON_REQUEST in page.read().flags
    inner.stop_listening(handled=False)
    assert not page.read().flags
    page.close()
