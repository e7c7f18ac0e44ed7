"""`tfddl.run` and `horovod.run`, with functions that need no TensorFlow: results and failures."""

import dataclasses
import functools
import io
import operator
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tfddl
from tests.group import ROOT
from tests.hosts import HERE, stand_in
from tests.launching import TIMEOUT_S, pids
from tests.processes import is_running, wait_until
from tfddl import horovod
from tfddl._src.launcher import call_relay
from tfddl._src.launcher.agent_client import AgentClient
from tfddl._src.launcher.call_relay import CallOutcome, CallRelay, RankResult
from tfddl._src.launcher.frames import Message
from tfddl._src.launcher.report import Outcome, WorkerExit
from tfddl._src.launcher.signals import Signals
from tfddl._src.remote_call import call_end
from tfddl._src.remote_call.pickling import (
    Answer,
    Call,
    add_paths,
    dump_call,
    find_unpicklable,
    load_call,
)
from tfddl.errors import LaunchError


def _rank() -> int:
    """That of the worker which calls it: TF_CONFIG ends in it."""
    return int(os.environ["TF_CONFIG"].rpartition('"index":')[2].strip(' }"'))


def _work(start: int, *, factor: int) -> tuple[int, int, bytes]:
    """Fails at its first start. The result is longer than a pipe holds."""
    rank = _rank()
    print(f"rank {rank} of start {os.environ['TFDDL_RESTARTS']}")
    if os.environ["TFDDL_RESTARTS"] == "0":
        if rank == 1:
            raise KeyError("for the first time")
        time.sleep(60)
    return rank, start * factor, bytes(200_000)


def test_results_come_in_rank_order_and_output_to_sys_stdout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a notebook, where it is no file."""
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stdout", shown)
    found = tfddl.run(_work, (4,), {"factor": 2}, np=3, max_restarts=1)
    assert found == [(rank, 8, bytes(200_000)) for rank in range(3)]
    lines = shown.getvalue().splitlines()
    assert {f"[{rank}] rank {rank} of start 1" for rank in range(3)} <= set(lines)


def _environment(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


def test_np_auto_and_env() -> None:
    env = {"CUDA_VISIBLE_DEVICES": "0,1", "GREETING": "hello, you"}
    found = tfddl.run(_environment, ["GREETING"], np="auto", env=env)
    assert found == [["hello, you"]] * 2


class _Custom(Exception):
    """Can be pickled, but not be loaded: it takes two arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def _fail(kind: str) -> int:
    if _rank() == 0:
        time.sleep(60)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "exit":
        sys.exit(7)
    if kind == "custom":
        raise _Custom("no", "good")
    if kind == "result":
        return {"lock": [threading.Lock()]}  # type: ignore[return-value]
    raise KeyError("no such key")


@pytest.mark.parametrize(
    ("kind", "text", "cause"),
    [
        (
            "raised",
            "^rank 1 failed:\nTraceback .*\n.*in _fail\n.*\nKeyError: 'no such key'",
            KeyError,
        ),
        ("custom", "^rank 1 failed:\nTraceback .*_Custom: no", type(None)),
        ("exit", "^rank 1 failed:\nTraceback .*SystemExit: 7", SystemExit),
        ("killed", "^rank 1 failed: killed by SIGKILL after ", type(None)),
        ("result", r"the result → \['lock'\] → \[0\] is of type _thread.lock: ", LaunchError),
    ],
)
def test_a_failure_arrives_with_rank_and_traceback(kind: str, text: str, cause: type) -> None:
    with pytest.raises(LaunchError, match=f"(?s){text}") as caught:
        tfddl.run(_fail, (kind,))
    assert type(caught.value.__cause__) is cause
    assert "remote_call/task.py" not in str(caught.value)


def test_the_first_exception_counts() -> None:
    """A worker's process may take longer to end than that of one which failed after it."""
    answers = {0: Answer(None, "the later one", at_s=2.0), 1: Answer(None, "the first", at_s=1.0)}
    outcome = CallOutcome(0, "", is_interrupted=False, report="a report", ranks=(0, 1, 2))
    found = {rank: RankResult(rank, "", b"") for rank in range(3)}

    def text(**changed: Any) -> str:
        failure = call_end.find_failure(dataclasses.replace(outcome, **changed), found, answers)
        assert failure is not None
        return failure.text

    assert text() == "rank 1 failed:\nthe first"
    # A rank without an exception was killed, so that its own end is the reason.
    assert text(root=2) == "a report"
    assert text(is_interrupted=True) == "a report"
    # Clocks of hosts can't be compared.
    found[1] = RankResult(1, "hostB", b"")
    assert text() == "rank 0 failed:\nthe later one"
    answers[0] = dataclasses.replace(answers[0], blames_peer=True)
    assert text() == "rank 1 on hostB failed:\nthe first"


class _Host(AgentClient):
    """A host whose agent says which results it has, or nothing."""

    def __init__(self, host: str, rank: int, *, answers: bool = True) -> None:
        super().__init__(host)
        self._fd, self._rank, self._does_answer = os.eventfd(0), rank, answers

    def fileno(self) -> int:
        return self._fd

    def send(self, message: Message, data: bytes = b"", /) -> None:
        if self._does_answer and message["do"] == "describe results":
            self._receive({"is": "sizes", "sizes": [(self._rank, 0)]})

    def turn(self, *, is_readable: bool) -> None:
        pass

    def timeout_s(self) -> float:
        return 1.0

    def close(self) -> None:
        os.close(self._fd)


def test_a_host_whose_results_do_not_come_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_relay, "_ANSWER_S", 0.05)
    hosts = [_Host("hostA", 0), _Host("hostB", 1), _Host("hostC", 2, answers=False)]
    hosts[1].lost = "the connection to hostB was lost"
    exits = tuple(WorkerExit(rank, 0, 1.0, (), None) for rank in range(3))
    outcome = Outcome(exits=exits, root=None, interrupted_by=None, num_oom_kills=0)
    with (
        tempfile.TemporaryFile() as call,
        tempfile.TemporaryFile() as results,
        Signals() as signals,
    ):
        relay = CallRelay(call.fileno(), results.fileno())
        problem = relay.fetch(outcome, hosts, signals=signals)
        results.seek(0)
        records = list(call_end.read_records(results))
    for host in hosts:
        host.close()
    assert problem == (
        "can't fetch the results: the connection to hostB was lost\n"
        "hostC hasn't answered within 0.05 s"
    )
    assert records == [
        RankResult(0, "hostA", b""),
        CallOutcome(None, "", is_interrupted=False, report=problem, ranks=(0, 1, 2)),
    ]


def test_a_rank_without_a_result_is_a_failure() -> None:
    """Though nothing else says so: the list of results would be shorter, and misaligned."""
    outcome = CallOutcome(None, "", is_interrupted=False, report="", ranks=(0, 1, 2))
    result = RankResult(0, "", pickle.dumps(Answer(b"a result")))
    end = call_end.read_end(iter([result, outcome]), 0)
    assert end.failure is not None
    assert "no result has come of rank 1, 2; one of each of 3 workers" in end.failure.text


def test_a_result_that_was_cut_off_hides_no_failure() -> None:
    """Its worker was killed while it wrote, since another rank had failed."""
    data = pickle.dumps(Answer(bytes(100_000)))
    raised = RankResult(1, "", pickle.dumps(Answer(None, "the reason")))
    outcome = CallOutcome(1, "", is_interrupted=False, report="a report", ranks=(0, 1))
    for size in (1, 10, 70_000, len(data) - 1):
        cut_off = RankResult(0, "", data[:size])
        end = call_end.read_end(iter([cut_off, raised, outcome]), 1)
        assert end.failure is not None
        assert end.failure.text == "rank 1 failed:\nthe reason"
        # So of the launcher's own records, where it was killed.
        file = io.BytesIO(pickle.dumps(raised) + pickle.dumps(cut_off)[:size])
        assert list(call_end.read_records(file)) == [raised]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"np": 0}, r"the number of workers \(-np\) is 0; it must be 1..1024"),
        ({"np": "two"}, "np is 'two'; expected a number of workers, or 'auto'"),
        ({"np": "auto", "hosts": "a:1"}, "np is 'auto', which counts the GPUs of this host"),
        ({"hosts": ["a:1", "b:x"]}, "host b has 'x' slots"),
        ({"ssh_command": "ssh '", "hosts": "a:1"}, 'ssh_command is "ssh \'", no line for a shell'),
        ({"min_np": 3}, "--min-np is 3; it must be at most the 2 workers"),
    ],
)
def test_options_out_of_range_are_refused_before_anything_starts(
    more: dict[str, Any], text: str
) -> None:
    with pytest.raises(LaunchError, match=text):
        tfddl.run(_rank, **more)


def test_a_worker_of_several_may_not_run_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = '{"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}'
    monkeypatch.setenv("TF_CONFIG", workers)
    monkeypatch.setenv("TFDDL_RESTARTS", "0")
    with pytest.raises(LaunchError, match="run was called by one of the 2 workers of a job"):
        tfddl.run(_rank)


class _Holder:
    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def method(self) -> None: ...


def _closure(value: Any) -> Callable[[], Any]:
    def inner() -> Any:
        return value

    return inner


_LOCK = threading.Lock()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, _LOCK]}, "x → ['a'] → [1]"),
        (_Holder(_Holder(_LOCK)), "x → .inner → .inner"),
        (_Holder(_LOCK).method, "x → self → .inner"),
        (functools.partial(operator.add, _LOCK), "x → args → [0]"),
        (_closure(types.SimpleNamespace(lock=_LOCK)), "x → value → .lock"),
        (_LOCK, "x"),
    ],
)
def test_the_part_that_cannot_be_pickled_is_named(value: Any, path: str) -> None:
    assert find_unpicklable("x", value) == (path, _LOCK)


def test_what_cannot_travel_is_said_before_anything_starts() -> None:
    with pytest.raises(LaunchError, match=r"call can't be pickled: kwargs\['a'\] → \[0\] is of "):
        tfddl.run(_environment, kwargs={"a": [_LOCK]})
    loop: list[Any] = [_LOCK]
    loop.append(loop)
    assert find_unpicklable("x", loop) == ("x → [0]", _LOCK)


def test_a_module_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("at_home")
    exec("def work(): ...", module.__dict__)
    monkeypatch.setitem(sys.modules, "at_home", module)
    data = dump_call(Call(module.__dict__["work"], (), {}))
    monkeypatch.delitem(sys.modules, "at_home")
    with pytest.raises(LaunchError, match="ModuleNotFoundError: No module named 'at_home'. HINT"):
        load_call(data)


def test_paths_of_another_environment_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/other/env/lib", "/project"])
    monkeypatch.setattr(sys, "prefix", "/other/env")
    data = dump_call(Call(len, ((),), {}))
    monkeypatch.setattr(sys, "path", ["/ours"])
    monkeypatch.setattr(sys, "prefix", "/our/env")
    assert load_call(data).make() == 0
    assert sys.path == ["/ours", "/project"]


def test_paths_of_an_engine_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/a"])
    data = add_paths(dump_call(Call(len, ((),), {})), ["/b", "/a"])
    monkeypatch.setattr(sys, "path", ["/own", "/a"])
    load_call(data)
    assert sys.path == ["/a", "/b", "/own"]


def _elsewhere(data: bytes) -> tuple[str | None, int, bytes]:
    return os.environ.get("FROM_THERE"), _rank(), data[::-1]


def test_hosts_need_no_common_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Call and results are longer than the pieces in which they travel."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # Not passed on to other hosts.
    data = os.urandom(9 << 20)
    ssh = stand_in(tmp_path / "ssh")
    found = tfddl.run(_elsewhere, (data,), hosts=[f"{HERE[0]}:2", HERE[1]], ssh_command=ssh)
    assert [result[:2] for result in found] == [("yes", 0), ("yes", 1), ("yes", 2)]
    assert all(result[2] == data[::-1] for result in found)
    assert (tmp_path / "ssh" / "asked").read_text().split() == list(HERE)
    with pytest.raises(LaunchError, match=f"^rank 1 on {HERE[1]} failed:\n(?s:.*)KeyError: "):
        tfddl.run(_fail, ("",), hosts=HERE, ssh_command=ssh)


def test_a_host_that_cannot_be_reached_is_an_error(tmp_path: Path) -> None:
    ssh = stand_in(tmp_path / "ssh", down=HERE[1])
    with pytest.raises(LaunchError, match="rank 1 can't start: can't reach .* by ssh: .*No route"):
        tfddl.run(_rank, hosts=list(HERE), ssh_command=ssh)


def _horovod_rank(expected: int) -> tuple[str, str, int]:
    import horovod  # type: ignore[import-not-found]

    return os.environ["HOROVOD_RANK"], horovod.__name__, expected


def test_horovod_run_is_the_same_under_its_signature() -> None:
    assert horovod.run(_horovod_rank, (5,), num_proc=2) == [
        ("0", "tfddl.horovod", 5),
        ("1", "tfddl.horovod", 5),
    ]
    with pytest.raises(LaunchError, match="3 workers"):
        horovod.run(_rank, num_proc=3, hosts="localhost:2")


PREAMBLE = """
import os, signal, sys, time
from pathlib import Path
import tfddl

def say(name):
    Path(name + ".new").write_text(str(os.getpid()))
    os.rename(name + ".new", name)
"""


def _caller(script: str, folder: Path, **more: Any) -> subprocess.Popen[str]:
    """A process that calls `run`; its script is its standard input."""
    (folder / "tmp").mkdir()
    (folder / "script").write_text(PREAMBLE + script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")}
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    with open(folder / "script") as file:
        return subprocess.Popen(
            [sys.executable, "-"], cwd=folder, env=environment, text=True, stdin=file, **more
        )


# Each worker has a child that has left its session.
WAITS = """
def work():
    rank = os.environ["TF_CONFIG"].rpartition(":")[2].strip(" }")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        say(f"child of {rank}")
        time.sleep(60)
    say(f"worker {rank}")
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        say(f"saved by {rank}")

assert "tensorflow" not in sys.modules
tfddl.run(work, np=2)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, signal.SIGINT], ids=lambda n: n.name
)
def test_whatever_ends_the_caller_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    with _caller(WAITS, tmp_path) as process:
        left = pids(tmp_path, *(f"{who} {rank}" for who in ("worker", "child of") for rank in "01"))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        left |= set(map(int, children.split()))
        process.send_signal(number)
        assert process.wait(timeout=TIMEOUT_S) == -number
        wait_until(lambda: not any(map(is_running, left)), timeout_s=TIMEOUT_S)
    assert not list((tmp_path / "tmp").iterdir())
    saved = [(tmp_path / f"saved by {rank}").exists() for rank in "01"]
    assert saved == [number == signal.SIGINT] * 2


CHATTERS = """
def work():
    for _ in range(2_000):
        print("x" * 100)  # more than a pipe holds

print(tfddl.run(work, np=1), file=sys.stderr)
"""


def test_a_full_disk_under_the_caller_s_output_does_not_stop_the_workers(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full, _caller(CHATTERS, tmp_path, stdout=full) as process:
        _, err = process.communicate(timeout=60)
    assert err.count("output of the workers can't be written and is dropped: [Errno 28]") == 1
    assert "[None]\n" in err
