"""Requests to save where two take them, one within the other."""

import signal
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


def test_sigterm_changes_nothing_once_it_has_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """As srun sends it to the other ranks when the first of them has ended with status 75."""
    page = ProgressPage(None)
    runtime = types.SimpleNamespace(progress_page=page, sigterm_handler=None)
    monkeypatch.setattr(preemption, "current", lambda: runtime)
    one, two = Preemption(), Preemption()
    try:
        one.listen()
        signal.raise_signal(signal.SIGTERM)
        assert one.got_sigterm
        one.stop_listening(handled=True)
        signal.raise_signal(signal.SIGTERM)
        # A script that goes on all the same trains as before.
        two.listen()
        signal.raise_signal(signal.SIGTERM)
        assert two.got_sigterm
        two.stop_listening(handled=True)
        two.listen()
        two.stop_listening(handled=False)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        # What somebody else ignores stays ignored.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        one.listen()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        page.close()
