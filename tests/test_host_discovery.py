"""Hosts that a script names while a job runs: real scripts, without a job."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.processes import is_running, wait_until
from tfddl._src.launcher.host_discovery import HostWatch, ScriptDiscovery, describe_hosts
from tfddl.errors import LaunchError


@contextmanager
def _script(folder: Path, text: str, *, timeout_s: float = 50.0) -> Iterator[ScriptDiscovery]:
    script = folder / "hosts.sh"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    discovery = ScriptDiscovery(str(script), default_slots=3, period_s=0.01, timeout_s=timeout_s)
    try:
        yield discovery
    finally:
        discovery.pause()


def _first_answer(discovery: ScriptDiscovery) -> Mapping[str, int] | None:
    wait_until(lambda: discovery.find_hosts() is not None)
    return discovery.find_hosts()


def test_a_script_names_hosts_again_and_again(tmp_path: Path) -> None:
    names = tmp_path / "names"
    names.write_text("hostA:2\nhostB\n\n")
    with _script(tmp_path, f"cat {names}") as discovery:
        assert discovery.find_hosts() is None  # It doesn't wait for the script.
        assert _first_answer(discovery) == {"hostA": 2, "hostB": 3}
        names.write_text("")
        wait_until(lambda: discovery.find_hosts() == {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "echo hostA:2; echo no credentials >&2; exit 3",
            r"has failed \(exit code 3: no credentials\)",
        ),
        ("kill -9 $$", r"has failed \(exit code 137: Killed\)"),
        ("echo hostA:x", "has printed what isn't understood: host hostA has 'x' slots; a number"),
        ("echo hostA:1; echo hostA:1", "host hostA is named twice"),
        ("exec ./none", r"has failed \(exit code 127: .*none"),
    ],
)
def test_a_script_that_fails_says_why(text: str, message: str, tmp_path: Path) -> None:
    with _script(tmp_path, text) as discovery, pytest.raises(LaunchError, match=message):
        _first_answer(discovery)


def test_a_script_that_hangs_is_killed_with_what_it_has_started(tmp_path: Path) -> None:
    text = f"sleep 60 & echo $! >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid; wait"
    with (
        _script(tmp_path, text, timeout_s=1.0) as discovery,
        pytest.raises(LaunchError, match="hasn't ended after 1 s, and was killed"),
    ):
        _first_answer(discovery)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not is_running(pid))


def test_a_slow_script_does_not_keep_anybody_waiting(tmp_path: Path) -> None:
    with _script(tmp_path, "sleep 60") as discovery:
        begun_s = time.monotonic()
        assert [discovery.find_hosts() for _ in range(100)] == [None] * 100
        assert time.monotonic() - begun_s < 30  # It sleeps for a minute.


class Answers:
    """A discovery that gives prepared answers, one after the other."""

    def __init__(self, *answers: Mapping[str, int] | str | None) -> None:
        self.answers = list(answers)
        self.num_pauses = 0

    def find_hosts(self) -> Mapping[str, int] | None:
        answer = self.answers.pop(0)
        if isinstance(answer, str):
            raise LaunchError(answer)
        return answer

    def pause(self) -> None:
        self.num_pauses += 1


def test_the_last_list_counts_while_the_discovery_fails() -> None:
    said: list[str] = []
    answers: list[Mapping[str, int] | str | None] = [
        *("down", "down", None, {"a": 2}, {"a": 2}, "down", "down", "worse", None),
        *({"b": 1, "a": 2}, {"a": 2}, {}),
    ]
    watch = HostWatch(Answers(*answers), say=said.append)
    seen = []
    for now_s in range(len(answers)):
        watch.turn(float(now_s))
        seen.append((watch.hosts and dict(watch.hosts), watch.changed_s))
    assert seen == [
        *[(None, 0.0)] * 3,
        *[({"a": 2}, 3.0)] * 6,
        ({"b": 1, "a": 2}, 9.0),
        ({"a": 2}, 10.0),
        ({}, 11.0),
    ]
    until = "count until it succeeds"
    assert said == [
        f"down. The hosts that are known (none yet) {until}",
        f"down. The hosts that are known (a:2) {until}",
        f"worse. The hosts that are known (a:2) {until}",
        "the hosts are now b:1,a:2",
        "the hosts are now a:2",
        "the hosts are now none",
    ]


def test_a_failure_that_comes_again_is_logged_again() -> None:
    said: list[str] = []
    watch = HostWatch(Answers({"a": 2}, "down", None, "down", {"a": 2}, "down"), say=said.append)
    for now_s in range(6):
        watch.turn(float(now_s))
    assert said == ["down. The hosts that are known (a:2) count until it succeeds"] * 2


def test_a_script_that_has_failed_says_nothing_until_it_succeeds(tmp_path: Path) -> None:
    fine = tmp_path / "fine"
    fine.touch()
    with _script(tmp_path, f"test -e {fine} && echo a:2") as discovery:
        assert _first_answer(discovery) == {"a": 2}
        fine.unlink()
        with pytest.raises(LaunchError, match="has failed"):
            wait_until(lambda: discovery.find_hosts() is None)
        assert discovery.find_hosts() is None


def test_hosts_as_text() -> None:
    assert describe_hosts({}) == "none"
    assert describe_hosts({"a": 2, "fd00::1": 1}) == "a:2,[fd00::1]:1"
