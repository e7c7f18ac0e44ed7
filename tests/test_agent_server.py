"""The agent of another host, as a process that is spoken to by pipes: no ssh, no TensorFlow."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfddl._src.launcher.agent import start_message
from tfddl._src.launcher.frames import pack
from tfddl._src.launcher.plan import ProcessPlan

# Each worker is a shell with a child of its own, and writes down the numbers of both.
_WORKER = "sleep 600 & touch $0/$! $0/$$; wait"

# An agent whose last step, which waits for one child after the other, begins only when all of the
# processes are dead: what hasn't been killed by then keeps it waiting until it gives up.
_AGENT = """
import os, pathlib, sys, time
from tfddl._src.launcher import agent_server

def is_running(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"

def kill_orphans(original=agent_server.kill_orphans):
    deadline = time.monotonic() + 60
    while running := [name for name in os.listdir(sys.argv[1]) if is_running(name)]:
        if time.monotonic() > deadline:
            print("not killed:", *running, file=sys.stderr, flush=True)
            break
        time.sleep(0.01)
    original()

agent_server.kill_orphans = kill_orphans
agent_server.run()
"""


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", _AGENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()  # The other one of its two processes then kills what is left.


def test_all_groups_are_killed_before_one_is_waited_for(
    agent: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """A worker that takes long to die, as one that holds a GPU does, delays no other's end."""
    assert agent.stdin is not None
    for rank in range(2):
        argv = ("sh", "-c", _WORKER, str(tmp_path))
        agent.stdin.write(
            pack(start_message(ProcessPlan(rank, argv, dict(os.environ), worker=rank)))
        )
    agent.stdin.flush()
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 4:
        assert time.monotonic() < deadline, "the workers haven't started"
        assert agent.poll() is None
        time.sleep(0.01)
    _, err = agent.communicate(timeout=120)  # Closes its input: the connection ends.
    assert err == b""
    assert agent.returncode == 0
    for path in tmp_path.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)
