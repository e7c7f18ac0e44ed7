"""What workers write, as `tfddlrun` shows it: lines, progress bars, logs."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.launching import (
    LAUNCHER,
    TIMEOUT_S,
    launch,
    launched,
    launched_on_terminal,
    pids,
    read_terminal,
    screen,
    two_workers,
    worker,
)
from tests.processes import in_sessions, wait_until
from tfddl._src.launcher.output import LineAssembler
from tfddl._src.startup_logs import has_gpu, without_startup_logs

KERAS_BAR = (
    "Epoch 1/2\n"
    "\r\x1b[1m1/3\x1b[0m \x1b[32m━━\x1b[0m\x1b[37m━━━━\x1b[0m \x1b[1m1s\x1b[0m 500ms/step"
    + "\b" * 24
    + "\r\x1b[1m2/3\x1b[0m \x1b[32m━━━━\x1b[0m\x1b[37m━━\x1b[0m \x1b[1m0s\x1b[0m 50ms/step "
    + "\b" * 24
    + "\r\x1b[1m3/3\x1b[0m \x1b[32m━━━━━━\x1b[0m\x1b[37m\x1b[0m \x1b[1m0s\x1b[0m 50ms/step\n"
    "done\n"
)

KERAS_LAST = "\x1b[1m3/3\x1b[0m \x1b[32m━━━━━━\x1b[0m\x1b[37m\x1b[0m \x1b[1m0s\x1b[0m 50ms/step"


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\n\nb", ["a", "", "b"]),  # the unfinished line comes at the end
        ("10%\r20%\r30%\n", ["30%"]),
        ("10%\r20%\r", ["20%"]),
        ("windows\r\n", ["windows"]),
        ("\rbar\r\rbaz\n", ["baz"]),
        ("|\b/\b-\b\\\n", ["\\"]),
        ("ab\b\bcd\b\b\n", ["cd"]),  # the cursor moved back, nothing was written over it
        ("a\b\b\bb\n", ["b"]),
        (KERAS_BAR, ["Epoch 1/2", KERAS_LAST, "done"]),
        ("", []),
    ],
)
def test_lines_are_those_that_a_terminal_shows(text: str, lines: list[str]) -> None:
    assembler = LineAssembler(progress_s=None)
    found = assembler.feed(text.encode(), now_s=0.0)
    assert found + assembler.finish() == lines


@given(
    st.lists(st.sampled_from(["a", "bc", "\n", "\r", "\b", "é━", "\x1b[1m", "\r\n"]), max_size=30),
    st.lists(st.integers(1, 5), min_size=1),
)
def test_lines_do_not_depend_on_how_they_are_read(texts: list[str], cuts: list[int]) -> None:
    data = "".join(texts).encode()
    whole, pieces = LineAssembler(progress_s=None), LineAssembler(progress_s=None)
    expected = whole.feed(data, now_s=0.0) + whole.finish()
    found, start = [], 0
    while start < len(data):
        step = cuts[start % len(cuts)]
        found += pieces.feed(data[start : start + step], now_s=0.0)
        start += step
    assert found + pieces.finish() == expected


@given(st.binary(max_size=200))
def test_any_bytes_pass_through(data: bytes) -> None:
    assembler = LineAssembler(progress_s=None)
    plain = data.translate(None, delete=b"\r\b") + b"\n"
    lines = assembler.feed(plain, now_s=0.0) + assembler.finish()
    assert "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape") == plain


def test_a_bar_is_shown_now_and_then_where_it_cant_be_rewritten() -> None:
    assembler = LineAssembler(progress_s=10.0)
    shown = [
        line
        for second in range(2500)
        for line in assembler.feed(f"\r{second} s".encode(), now_s=float(second))
    ]
    # Less and less often, at least every 600 s.
    assert shown == [f"{n} s" for n in (10, 30, 70, 150, 310, 630, 1230, 1830, 2430)]
    assert assembler.feed(b"\n", now_s=2500.0) == ["2499 s"]
    # The next line begins anew; of short ones only the end is shown.
    assert assembler.feed(b"\ra", now_s=2501.0) + assembler.feed(b"\rb", now_s=2502.0) == []
    assert assembler.feed(b"\rc", now_s=2512.0) == ["b"]
    assert assembler.feed(b"\n", now_s=2512.0) == ["c"]
    for start in (2512, 2521, 2530):
        for second in range(start, start + 9):
            assert assembler.feed(f"\r{second} s".encode(), now_s=float(second)) == []
        assert assembler.feed(b"\n", now_s=start + 9.0) == [f"{start + 8} s"]


def test_a_line_without_end_is_given_out_in_parts() -> None:
    assembler = LineAssembler(progress_s=None)
    lines = [line for _ in range(20) for line in assembler.feed(b"x" * 100_000, now_s=0.0)]
    assert len(lines) == 1
    assert len("".join(lines + assembler.finish())) == 2_000_000


REWRITING = ("x\b", "\b\bx", "xy\b\b", "\b" * 100 + "x" * 100, "\bé")


@pytest.mark.parametrize("text", REWRITING)
def test_rewriting_the_end_of_a_line_costs_the_same_however_long_it_is(text: str) -> None:
    """Compared with a short line, so that it doesn't matter how fast this machine is."""

    def cost_s(length: int) -> float:
        assembler = LineAssembler(progress_s=None)
        assembler.feed(b"y" * length, now_s=0.0)
        begin = time.process_time()
        assembler.feed((text * 5_000).encode(), now_s=0.0)
        return time.process_time() - begin

    # Copied each time, the long one would cost hundreds of times as much.
    assert cost_s(1_000_000) < 30 * cost_s(1_000) + 0.05


@pytest.mark.parametrize("remote", [False, True])
def test_what_a_worker_started_may_finish_writing(remote: bool, tmp_path: Path) -> None:
    script = """
if rank:
    sys.exit()
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.01)
    print("the last word")
    if os.fork() == 0:
        time.sleep(60)
    sys.exit()
print("bye")
"""
    done = launch(*two_workers(tmp_path, remote=remote), *worker(script), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[0] bye\n[0] the last word\n"


def test_the_progress_bar_of_rank_0_stays_whole_on_a_terminal(tmp_path: Path) -> None:
    script = """
if rank == 0:
    print("Epoch 1/1")
    width = 0
    for step in range(1, 31):
        bar = f"\\x1b[1m{step}/30\\x1b[0m \\x1b[32m{'━' * step}\\x1b[0m - loss: {1 / step:.4f}"
        shown = len(bar) - 17
        sys.stdout.write("\\b" * width + "\\r" + bar + " " * max(0, width - shown))
        width = shown
        time.sleep(0.02)
    sys.stdout.write("\\n")
    print("done")
else:
    for step in range(1, 31):
        print(f"{rank} says {step} " + "x" * 40)
        print(f"{rank} warns {step}", file=sys.stderr)
        time.sleep(0.02)
"""
    with launched_on_terminal("-np", "3", *worker(script), cwd=tmp_path) as (process, terminal):
        written = read_terminal(terminal)
        assert process.wait(timeout=TIMEOUT_S) == 0
    # Nothing is half overwritten: every line is a whole one, and the bar is there once.
    expected = ["[0] Epoch 1/1", f"[0] 30/30 {'━' * 30} - loss: 0.0333", "[0] done", ""]
    for rank in (1, 2):
        for step in range(1, 31):
            expected.append(f"[{rank}] {rank} says {step} " + "x" * 40)
            expected.append(f"[{rank}] {rank} warns {step}")
    assert sorted(screen(written)) == sorted(expected)
    # And it moved: how often depends on how soon the launcher comes to read.
    assert len(set(re.findall(r"\[0\]\x1b\[0m \x1b\[1m(\d+)/30", written))) > 2


def test_a_bar_wider_than_the_terminal_is_cut_until_it_is_finished(tmp_path: Path) -> None:
    script = """
for step in range(3):
    sys.stdout.write(f"\\r{step} " + "y" * 50)
    if step == 1:
        wait_for("seen")
print()
"""
    with launched_on_terminal("-np", "1", *worker(script), columns=30, cwd=tmp_path) as (
        process,
        terminal,
    ):
        cut = "[0]\x1b[0m 1 " + "y" * 23
        written = read_terminal(terminal, until=cut)
        (tmp_path / "seen").touch()
        written += read_terminal(terminal)
        assert process.wait(timeout=TIMEOUT_S) == 0
    assert screen(written) == ["[0] 2 " + "y" * 50, ""]
    assert f"{cut}\r" in written


def test_a_bar_is_readable_without_a_terminal(tmp_path: Path) -> None:
    done = launch("-np", "1", *worker(f"sys.stdout.write({KERAS_BAR!r})"), cwd=tmp_path)
    assert done.stdout == "[0] Epoch 1/2\n[0] 3/3 ━━━━━━ 0s 50ms/step\n[0] done\n"


def _tensorflow(script: str) -> list[str]:
    """A worker that loads TensorFlow, and looks for GPUs."""
    preamble = "import sys, tensorflow as tf\ntf.config.list_physical_devices()\n"
    return [sys.executable, "-c", preamble + script]


# Half of a JPEG: TensorFlow logs an error and a warning that are about the user's data.
HALF_AN_IMAGE = """
image = tf.io.encode_jpeg(tf.cast(tf.random.uniform((64, 64, 3), 0, 255, tf.int32), tf.uint8))
try:
    tf.io.decode_jpeg(tf.strings.substr(image, 0, tf.strings.length(image) // 2))
except tf.errors.InvalidArgumentError:
    sys.exit("not a whole image")
"""


@pytest.mark.skipif(has_gpu(), reason="CUDA's failure is shown where there is a GPU")
def test_what_tensorflow_logs_though_nothing_is_wrong_is_hidden(tmp_path: Path) -> None:
    options = ("-np", "1", "--output-filename", "logs")
    done = launch(*options, *_tensorflow(HALF_AN_IMAGE), cwd=tmp_path)
    lines = done.stderr.splitlines()
    shown = [line.removeprefix("[0] ") for line in lines if line.startswith("[0] ")]
    assert [line for line in shown if not re.search("JPEG|not a whole image$", line)] == []
    assert len([line for line in shown if re.match("E0000 .* Premature end of JPEG", line)]) == 1
    assert len([line for line in shown if re.match("W0000 .* INVALID_ARGUMENT: jpeg", line)]) == 1
    start = lines.index("tfddlrun: the last lines of its stderr:") + 1
    assert [line.removeprefix("tfddlrun:   ") for line in lines[start:]] == shown
    # The log has all.
    logged = (tmp_path / "logs/rank.0/stderr").read_text().splitlines()
    assert [line for line in logged if re.match("E0000 .* failed call to cuInit", line)]
    assert without_startup_logs(logged, has_gpu=False) == shown


@pytest.mark.long
@pytest.mark.skipif(has_gpu(), reason="CUDA's failure is shown where there is a GPU")
def test_all_is_shown_if_asked_for(tmp_path: Path) -> None:
    done = launch("-np", "1", "--verbose", *_tensorflow(""), cwd=tmp_path)
    assert re.search(r"^\[0\] I0000 .* oneDNN custom operations are on", done.stderr, re.MULTILINE)
    assert re.search(r"^\[0\] I0000 .* This TensorFlow binary is optim", done.stderr, re.MULTILINE)
    assert re.search(r"^\[0\] E0000 .* failed call to cuInit", done.stderr, re.MULTILINE)


def test_a_log_level_of_the_user_s_is_kept(tmp_path: Path) -> None:
    lines = ["I0000 00:00:1795386800.169345    5940 port.cc:153] oneDNN is on.", "mine"]
    script = worker(
        f"print(*{lines!r}, os.environ['TF_CPP_MIN_LOG_LEVEL'], sep='\\n', file=sys.stderr)"
    )
    for options, shown in (
        (("-np", "1"), [lines[1], "1"]),
        (("-np", "1", "-x", "TF_CPP_MIN_LOG_LEVEL=2"), [lines[1], "2"]),
        (("-np", "1", "-x", "TF_CPP_MIN_LOG_LEVEL=0"), [*lines, "0"]),
        (("-np", "1", "--verbose"), [*lines, "0"]),
        (("-np", "1", "--verbose", "-x", "TF_CPP_MIN_LOG_LEVEL=2"), [lines[1], "2"]),
    ):
        done = launch(*options, *script, cwd=tmp_path)
        said = [line for line in done.stderr.splitlines() if line.startswith("[0] ")]
        assert said == [f"[0] {line}" for line in shown], options


def test_a_reader_that_leaves_ends_the_job(tmp_path: Path) -> None:
    script = """
say(f"rank {rank} is ready")
while True:
    print("more")
    time.sleep(0.01)
"""
    with launched("-np", "2", *worker(script), cwd=tmp_path) as process:
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(timeout=TIMEOUT_S) == 128 + signal.SIGPIPE
        assert process.stderr.read() == ""
    assert not in_sessions(left)


def test_a_reader_that_sleeps_does_not_stop_a_signal(tmp_path: Path) -> None:
    script = """
say(f"rank {rank} is ready")
while True:
    print("x" * 1000)
"""
    reader, writer = os.pipe()
    with (
        os.fdopen(reader),
        os.fdopen(writer, "w") as out,
        launched("-np", "2", *worker(script), cwd=tmp_path, stdout=out) as process,
    ):
        left = pids(tmp_path, "rank 0 is ready", "rank 1 is ready")
        wait_until(lambda: not select.select([], [out], [], 0)[1])  # It is full, and nobody reads.
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=TIMEOUT_S) == 128 + signal.SIGTERM
    assert not in_sessions(left)


NAMES = ("stdout", "stderr")
LOSS = "tfddlrun: can't write {}: {}. Output of workers that can't be written is dropped, and the "
LOSS += "job goes on"


@pytest.mark.parametrize("full", ["stdout", "stderr", "both"])
def test_a_full_disk_under_our_output_does_not_end_the_job(full: str, tmp_path: Path) -> None:
    script = """
for n in range(3):
    print("out", flush=True)
    print("err", file=sys.stderr, flush=True)
say(f"rank {rank} has written")
wait_for(f"rank {1 - rank} has written")
sys.exit(7 * rank)
"""
    with open("/dev/full", "w") as file:
        files: dict[str, Any] = {name: file for name in NAMES if full in (name, "both")}
        done = launch("-np", "2", *worker(script), cwd=tmp_path, **files)
    assert done.returncode == 7
    if full == "stdout":
        told = LOSS.format("to stdout", "No space left on device")
        assert done.stderr.splitlines().count(told) == 1
        assert done.stderr.count("No space left") == 1
        assert "tfddlrun: rank 1 failed: exit code 7" in done.stderr
    elif full == "stderr":
        assert sorted(done.stdout.splitlines()) == ["[0] out"] * 3 + ["[1] out"] * 3


def test_output_goes_on_where_the_disk_has_room_again(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk, which gets full in the midst of a line."""
    script = """
print("x" * 70_000)
wait_for("it was cut")
print("y")
"""
    path = tmp_path / "out"
    limited = ["prlimit", "--fsize=50000:", *LAUNCHER, "-np", "1", *worker(script)]
    with (
        path.open("w") as out,
        subprocess.Popen(limited, cwd=tmp_path, stdout=out, stderr=subprocess.PIPE) as process,
    ):
        assert process.stderr is not None
        told = process.stderr.readline().decode()
        assert told == LOSS.format("to stdout", "File too large") + "\n"
        os.truncate(path, 0)
        out.seek(0)  # the offset is shared
        (tmp_path / "it was cut").touch()
        assert process.wait(timeout=TIMEOUT_S) == 0
        assert process.stderr.read() == b""
    assert path.read_text() == "\n[0] y\n"


def test_a_full_disk_under_the_logs_does_not_end_the_job(tmp_path: Path) -> None:
    script = """
print("x" * 70_000, flush=True)
print("y", flush=True)
say(f"rank {rank} has written")
wait_for("rank 0 has written")
time.sleep(60 * (1 - rank))  # until it is ended
sys.exit(3)
"""
    limited = ["prlimit", "--fsize=50000:", *LAUNCHER, "-np", "2", "--output-filename", "logs"]
    done = subprocess.run(
        [*limited, *worker(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 3
    assert sorted(done.stdout.splitlines()) == sorted(
        f"[{rank}] {text}" for rank in range(2) for text in ("x" * 70_000, "y")
    )
    lost = [line for line in done.stderr.splitlines() if "can't write" in line]
    assert lost in [
        [LOSS.format(f"the log logs/rank.{rank}/stdout", "File too large")] for rank in range(2)
    ]
    assert (tmp_path / "logs/rank.0/stdout").read_text() == "x" * 50_000


def _link_to_file(logs: Path, stack: ExitStack) -> None:
    (logs / "rank.0").mkdir(parents=True)
    (logs / "rank.0/stdout").symlink_to(logs.parent / "precious")


def _link_to_folder(logs: Path, stack: ExitStack) -> None:
    (logs.parent / "elsewhere").mkdir()
    logs.mkdir()
    (logs / "rank.0").symlink_to(logs.parent / "elsewhere")


def _hard_link(logs: Path, stack: ExitStack) -> None:
    (logs / "rank.0").mkdir(parents=True)
    (logs / "rank.0/stdout").hardlink_to(logs.parent / "precious")


def _fifo(logs: Path, stack: ExitStack) -> None:
    (logs / "rank.0").mkdir(parents=True)
    os.mkfifo(logs / "rank.0/stderr")


def _fifo_that_is_read(logs: Path, stack: ExitStack) -> None:
    _fifo(logs, stack)
    stack.callback(os.close, os.open(logs / "rank.0/stderr", os.O_RDONLY | os.O_NONBLOCK))


def _socket(logs: Path, stack: ExitStack) -> None:
    (logs / "rank.0").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(logs / "rank.0/stdout"))


def _anothers_folder(logs: Path, stack: ExitStack) -> None:
    (logs / "rank.0").mkdir(parents=True)
    os.chown(logs / "rank.0", 1234, -1)


def _anothers_file(logs: Path, stack: ExitStack) -> None:
    (logs / "rank.0").mkdir(parents=True)
    (logs / "rank.0/stdout").touch()
    os.chown(logs / "rank.0/stdout", 1234, -1)


AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give files to others")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (_link_to_file, "logs/rank.0: logs/rank.0/stdout is a link. HINT"),
        (_link_to_folder, "logs/rank.0: logs/rank.0 is a link. HINT"),
        (_hard_link, "logs/rank.0/stdout: it is another file, too, by a hard link"),
        (_fifo, "logs/rank.0/stderr: it is no plain file"),
        (_fifo_that_is_read, "logs/rank.0/stderr: it is no plain file"),
        (_socket, "logs/rank.0/stdout: it is no plain file"),
        pytest.param(_anothers_folder, "logs/rank.0: it belongs to another user", marks=AS_ROOT),
        pytest.param(
            _anothers_file, "logs/rank.0/stdout: it belongs to another user", marks=AS_ROOT
        ),
    ],
)
def test_logs_overwrite_nothing_but_logs(
    prepare: Callable[[Path, ExitStack], None], message: str, tmp_path: Path
) -> None:
    (tmp_path / "precious").write_text("precious")
    options = ("-np", "1", "--output-filename", "logs")
    with ExitStack() as stack:
        prepare(tmp_path / "logs", stack)
        done = launch(*options, *worker('print("hello")'), cwd=tmp_path)
    assert done.returncode == 127
    assert f"tfddlrun: can't write logs to {message}" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "precious").read_text() == "precious"
    elsewhere = tmp_path / "elsewhere"
    assert not elsewhere.exists() or not list(elsewhere.iterdir())


def test_the_folder_of_logs_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "logs").symlink_to(tmp_path / "scratch")
    for text in ("a longer text", "hello"):  # an earlier job's logs are replaced
        options = ("-np", "1", "--output-filename", "logs")
        done = launch(*options, *worker(f"print({text!r})"), cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "scratch/rank.0/stdout").read_text() == "hello\n"
