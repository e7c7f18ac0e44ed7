"""What cgroups grant, by files as the kernel writes them."""

import os
import platform
from pathlib import Path

import pytest

from tfddl._src import cpu
from tfddl._src.cpu import cores_of_worker, has_own_core

V1_GRANTS = {"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}
V1_ALL = {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/a/b", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000\n"}, None),
        # In a container: its own cgroup is at the top, whatever its path is outside.
        ("0::/docker/1", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/../..", {"cpu.max": "200000 100000\n"}, 2.0),
        ("4:cpu,cpuacct:/a", {f"cpu,cpuacct/a/{n}": t for n, t in V1_GRANTS.items()}, 2.5),
        ("4:cpuacct,cpu:/a", {f"cpu/a/{n}": t for n, t in V1_GRANTS.items()}, 2.5),
        ("4:cpu:/a", {f"cpu/a/{n}": t for n, t in V1_ALL.items()}, None),
        ("4:cpuset:/a", {f"cpuset/a/{n}": t for n, t in V1_GRANTS.items()}, None),
        # Both versions at once.
        ("0::/\n4:cpu:/", {f"cpu/{n}": t for n, t in V1_GRANTS.items()}, 2.5),
        ("0::/a", {"a/cpu.max": "what is this\n"}, None),
        ("", {}, None),
    ],
)
def test_quotas(own: str, files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    (tmp_path / "own").write_text(own)
    root = tmp_path / "cgroup"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert cpu.cpu_quota(own=tmp_path / "own", root=root) == quota
    assert cpu.cpu_quota(own=tmp_path / "none", root=root) is None


@pytest.mark.parametrize(
    ("quota", "local_size", "threads", "has_own"),
    [(None, 2, 4, True), (None, 8, 1, True), (3.9, 1, 3, True), (3.9, 2, 1, True)]
    + [(0.5, 1, 1, False), (1.0, 2, 1, False), (100.0, 2, 4, True), (None, 9, 1, False)],
)
def test_threads_keep_to_a_quota(
    quota: float | None,
    local_size: int,
    threads: int,
    has_own: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tfddl._src.cpu.cpu_quota", lambda: quota)
    monkeypatch.setattr("tfddl._src.cpu.cpu_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert cores_of_worker(local_size) == threads
    assert has_own_core(local_size) == has_own
    # Bound to their share by a launcher, which has asked for the quota too.
    assert cores_of_worker(local_size, own=threads) == threads
    assert cpu.num_quota_cores(among=local_size) >= threads


@pytest.mark.parametrize(("told", "cores_found"), [(6, 6), (None, 1)])
def test_where_processes_are_not_bound(
    told: int | None, cores_found: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: told)
    monkeypatch.setattr("tfddl._src.cpu.cpu_quota", lambda: None)
    monkeypatch.setattr("tfddl._src.cpu.cpu_quota", lambda: None)
    assert cpu.num_affinity_cores() == cpu.num_usable_cores() == cores_found
    assert has_own_core(cores_found)
    assert not has_own_core(cores_found + 1)


def test_processors_of_one_name_are_told_apart(tmp_path: Path) -> None:
    x86, arm, none = tmp_path / "x86", tmp_path / "arm", tmp_path / "none"
    core = "cpu family\t: 25\nmodel\t\t: {}\nmodel name\t: AMD EPYC\nstepping\t: 1\n\n"
    x86.write_text("processor\t: 0\n" + core.format(17) + "processor\t: 1\n" + core.format(18))
    assert cpu.processor_name(x86) == "AMD EPYC, cpu family 25, model 17, stepping 1"
    arm.write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0c\n\n")
    assert cpu.processor_name(arm).endswith(", CPU implementer 0x41, CPU part 0xd0c")
    assert cpu.processor_name(none) == platform.machine()
