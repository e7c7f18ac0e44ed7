"""The job's secret: every worker has it, and nobody else sees it."""

import re
from pathlib import Path

import pytest

from tests.launching import TIMEOUT_S, launch, launched, two_workers, worker
from tests.processes import wait_until
from tfddl._src.launcher.environment import Export, given_secret
from tfddl.errors import LaunchError

CHOSEN = "5ec2e7" * 8

KEEP_AND_FAIL = """
start = os.environ["TFDDL_RESTARTS"]
Path(f"new.{start}.{rank}").write_text(os.environ["TFDDL_SECRET"])
os.rename(f"new.{start}.{rank}", f"secret.{start}.{rank}")
wait_for(f"seen.{start}")
sys.exit(1 - int(start))
"""


def _command_lines() -> bytes:
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except OSError:  # it has ended meanwhile
            continue
    return b"\n".join(lines)


def test_every_start_has_a_secret_of_its_own(tmp_path: Path) -> None:
    options = (*two_workers(tmp_path, remote=True), "--max-restarts", "1", "--verbose")
    with launched(*options, *worker(KEEP_AND_FAIL), cwd=tmp_path) as process:
        found = []
        for start in range(2):
            paths = [tmp_path / f"secret.{start}.{rank}" for rank in range(2)]
            for path in paths:
                wait_until(path.exists)
            (secret,) = {path.read_text() for path in paths}
            assert re.fullmatch("[0-9a-f]{64}", secret)
            assert secret.encode() not in _command_lines()
            found.append(secret)
            (tmp_path / f"seen.{start}").touch()
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, err
    assert found[0] != found[1]
    assert not [secret for secret in found if secret in out + err]


def test_a_secret_that_the_user_has_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDDL_SECRET", CHOSEN)
    script = "print(os.environ['TFDDL_SECRET'])"
    options = two_workers(tmp_path, remote=True)
    done = launch(*options, *worker(script), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == [f"[{rank}] {CHOSEN}" for rank in range(2)]
    for more in ((), ("-x", "TFDDL_SECRET"), ("--horovod",)):
        shown = launch(*options, *more, "--dry-run", "true", cwd=tmp_path)
        assert shown.returncode == 0
        assert "TF_CONFIG" in shown.stdout
        assert "SECRET" not in shown.stdout
        assert CHOSEN not in shown.stdout


def test_a_job_within_a_worker_has_a_secret_of_its_own(tmp_path: Path) -> None:
    inner = ["tfddlrun", "-np", "1", *worker("print(os.environ['TFDDL_SECRET'])")]
    script = f"""
print(os.environ["TFDDL_SECRET"], flush=True)
subprocess.run([{worker("")[0]!r}, "-m", "tfddl.launcher", *{inner[1:]!r}], check=True)
"""
    notice = "tfddlrun: started by a worker of another tfddlrun; this is a separate job"
    for number, notices in (("1", []), ("2", [f"[{rank}] {notice}" for rank in range(2)])):
        done = launch("-np", number, *worker(script), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = re.findall("[0-9a-f]{64}", done.stdout)
        assert len(set(found)) == 1 + int(number)
        # Among others it might have been meant to be one job with theirs.
        assert sorted(done.stderr.splitlines()) == notices


def test_which_secret_counts() -> None:
    assert given_secret({}) is given_secret({"TFDDL_SECRET": ""}) is None
    assert given_secret({"TFDDL_SECRET": CHOSEN}) == CHOSEN
    assert given_secret({"TFDDL_SECRET": f" {'AB' * 16}\n"}) == "ab" * 16
    inside = {"TFDDL_SECRET": CHOSEN, "TFDDL_RESTARTS": "0"}
    assert given_secret(inside) is None
    assert given_secret(inside, [Export("TFDDL_SECRET")]) == CHOSEN
    assert given_secret(inside, [Export("TFDDL_SECRET", CHOSEN[::-1])]) == CHOSEN[::-1]


@pytest.mark.parametrize("secret", ["abc", "ab", "ab" * 15, "ab" * 16 + "c", "zz" * 16, "é" * 32])
def test_bad_secrets_are_refused_and_not_shown(secret: str) -> None:
    message = f"TFDDL_SECRET is {len(secret)} characters that aren't a secret; at least 32"
    with pytest.raises(LaunchError, match=message) as caught:
        given_secret({"TFDDL_SECRET": secret})
    assert secret not in str(caught.value)
