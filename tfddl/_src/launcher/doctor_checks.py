"""The checks of `tfddl-doctor`, on facts that `doctor_probe` has found. Pure."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Facts = Mapping[str, Any]
"""What `doctor_probe.facts` returns for one host."""

_ALIKE = ("tfddl", "TensorFlow", "Keras", "NumPy")
_OPEN_FILES = 1024
_SHARED_MEMORY = 256 << 20
_DISK = 1 << 30
_CLOCK_S = 1.0


class Level(enum.Enum):
    """Severity of a finding."""

    OK = "ok"
    NOTE = "note"
    """It works, but may be slow or puzzling."""
    PROBLEM = "PROBLEM"
    """A job will fail."""


@dataclass(frozen=True)
class Finding:
    """The result of one check, a line of the doctor's output.

    Attributes:
        level: how bad it is.
        where: which hosts.
        what: what was found.
        remedy: what to do about it; "" where nothing has to be done.
    """

    level: Level
    where: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        hint = f". HINT: {self.remedy}" if self.remedy else ""
        return f"{self.level.value:<8} {self.where}: {self.what}{hint}"


def check_facts(hosts: Mapping[str, Facts], workers: Mapping[str, int]) -> list[Finding]:
    """Judges what hosts say of themselves.

    Args:
        hosts: by host, its facts.
        workers: by host, how many workers it will run.
    """
    findings = [*_check_versions(hosts)]
    for host, facts in hosts.items():
        findings += _check_host(host, facts, workers[host])
        if len(hosts) > 1:
            findings += _check_own_name(host, facts)
    return findings


def check_clock(host: str, *, offset_s: float, uncertain_s: float) -> Finding:
    """Judges a clock by how far it is ahead of ours."""
    if abs(offset_s) <= _CLOCK_S + uncertain_s:
        return Finding(Level.OK, host, f"its clock agrees with ours (to {uncertain_s:.2f} s)")
    way = "ahead of" if offset_s > 0 else "behind"
    return Finding(
        Level.NOTE,
        host,
        f"its clock is {abs(offset_s):.1f} s {way} ours, so that logs and files will look as if "
        "they came in another order",
        "run NTP (chrony, systemd-timesyncd) on all hosts",
    )


def check_reach(host: str, other: str, answer: Mapping[str, Any], num_ports: int) -> Finding:
    """Judges what a host found when it tried the ports of another."""
    errors = answer["errors"]
    if errors:
        port, why = next(iter(errors.items()))
        return Finding(
            Level.PROBLEM,
            f"{host} -> {other}",
            f"{len(errors)} of the workers' {num_ports} ports can't be reached ({port}: {why})",
            f"let {host} connect to ports 10000-65535 of {other}, or choose another network by "
            "--network-interface",
        )
    latency_s = answer["latency_s"]
    shown = "" if latency_s is None else f", a round trip takes {latency_s * 1e3:.2f} ms"
    ports = "the worker's port" if num_ports == 1 else f"the workers' {num_ports} ports"
    return Finding(Level.OK, f"{host} -> {other}", f"{ports} can be reached{shown}")


def check_speed(host: str, other: str, answer: Mapping[str, Any]) -> Finding:
    """Judges how fast a host could send to another."""
    where = f"{host} -> {other}"
    if "error" in answer:
        return Finding(
            Level.PROBLEM,
            where,
            f"sending fails: {answer['error']}",
            "the network may drop large packets (MTU), or be very slow",
        )
    speed = answer["bytes_per_s"] / 1e6
    if speed < 50:
        return Finding(
            Level.NOTE,
            where,
            f"{speed:.0f} MB/s over one connection; gradients will wait for it",
            "a faster network by --network-interface, or larger batches",
        )
    return Finding(Level.OK, where, f"{speed:.0f} MB/s over one connection")


def _check_versions(hosts: Mapping[str, Facts]) -> Iterator[Finding]:
    everywhere = ", ".join(hosts)
    python = {host: ".".join(facts["python"].split(".")[:2]) for host, facts in hosts.items()}
    yield _alike("Python", python, everywhere, exactly=False)
    for what in _ALIKE:
        found = {host: facts["versions"][what] for host, facts in hosts.items()}
        missing = [host for host, version in found.items() if version is None]
        if missing and what != "tfddl":
            yield Finding(
                Level.PROBLEM,
                ", ".join(missing),
                f"{what} isn't installed for the Python that tfddlrun starts there",
                "pip install tfddl there, or --remote-python for another one",
            )
        elif not missing:
            yield _alike(what, found, everywhere, exactly=True)
    machines = {host: facts["machine"] for host, facts in hosts.items()}
    if len(set(machines.values())) > 1:
        yield Finding(
            Level.NOTE,
            everywhere,
            f"processors of different kinds: {_by_host(machines)}",
            "workers wait for the slowest, and results may differ in the last bits",
        )


def _alike(what: str, found: Mapping[str, str], everywhere: str, *, exactly: bool) -> Finding:
    if len(set(found.values())) == 1:
        return Finding(Level.OK, everywhere, f"{what} {next(iter(found.values()))}")
    return Finding(
        Level.PROBLEM if exactly else Level.NOTE,
        everywhere,
        f"{what} differs: {_by_host(found)}",
        "install the same on all hosts",
    )


def _check_host(host: str, facts: Facts, num_workers: int) -> Iterator[Finding]:
    if facts["cores"] < num_workers and not facts["gpus"]:
        yield Finding(
            Level.NOTE,
            host,
            f"{num_workers} workers on {facts['cores']} cores will take turns",
            f"-H {host}:{facts['cores']}",
        )
    yield from _check_gpus(host, facts, num_workers)
    yield from _check_limits(host, facts)


def _check_own_name(host: str, facts: Facts) -> Iterator[Finding]:
    own, name = facts["own_addresses"], facts["hostname"]
    if not own:
        yield Finding(
            Level.NOTE, host, f"its own name, {name}, isn't known there", "add it to /etc/hosts"
        )
    elif all(ipaddress.ip_address(text).is_loopback for text in own):
        yield Finding(
            Level.NOTE,
            host,
            f"its own name, {name}, is the loopback {own[0]} there",
            "write its address into /etc/hosts, for programs that tell others where they are",
        )


def _check_gpus(host: str, facts: Facts, num_workers: int) -> Iterator[Finding]:
    gpus, nccl = facts["gpus"], facts["versions"]["NCCL"]
    instances = facts["mig_instances"]
    if not gpus:
        yield Finding(Level.OK, host, f"no GPU; workers train on its {facts['cores']} cores")
        return
    if facts["driver"] is None:
        yield Finding(
            Level.PROBLEM, host, f"{gpus} GPUs, but no driver is loaded", "nvidia-smi tells more"
        )
    if nccl is None:
        yield Finding(
            Level.NOTE,
            host,
            f"{gpus} GPUs, and no CUDA libraries as Python packages: TensorFlow needs the "
            "system's, which containers of NVIDIA have",
            'if TensorFlow finds no GPU, pip install "tensorflow[and-cuda]" there',
        )
    if num_workers > gpus:
        yield Finding(
            Level.PROBLEM,
            host,
            f"{num_workers} workers, but {gpus} GPU{'s' * (gpus > 1)}; each needs its own",
            f"-H {host}:{gpus}",
        )
    elif facts["driver"] is not None:
        shown = f"{gpus} GPUs, driver {facts['driver']}, NCCL {nccl or 'of the system'}"
        yield Finding(Level.OK, host, shown)
    if instances:
        yield Finding(
            Level.NOTE,
            host,
            f"{instances} of its {gpus} GPUs are MIG instances, of which a process sees only one",
            "give each worker its own by CUDA_VISIBLE_DEVICES=MIG-…, as schedulers and device "
            "plugins do; nvidia-smi -L lists them",
        )


def _check_limits(host: str, facts: Facts) -> Iterator[Finding]:
    small: list[tuple[str, str]] = []
    soft = facts["open_files"]["soft"]
    if 0 <= soft < _OPEN_FILES:
        small.append((f"only {soft} open files are allowed", f"ulimit -n {_OPEN_FILES}"))
    shared = facts["shared_memory"]
    if shared is None or shared < _SHARED_MEMORY:
        small.append(
            (
                f"/dev/shm has {_size(shared)} free",
                "mount it larger; for containers --shm-size=1g, or an emptyDir of medium Memory",
            )
        )
    for folder, free in facts["disk"].items():
        if free is None:
            yield Finding(
                Level.PROBLEM, host, f"there is no folder {folder}", "the same on all hosts"
            )
        elif free < _DISK:
            small.append((f"{folder} has {_size(free)} free", "make room for checkpoints and logs"))
    for what, remedy in small:
        yield Finding(Level.NOTE, host, what, remedy)
    if not small:
        yield Finding(
            Level.OK,
            host,
            f"{_size(shared)} shared memory, {soft} open files, "
            + ", ".join(
                f"{_size(free)} free in {folder}" for folder, free in facts["disk"].items()
            ),
        )


def _size(num_bytes: int | None) -> str:
    return "nothing" if num_bytes is None else f"{num_bytes / 1e9:.1f} GB"


def _by_host(values: Mapping[str, str]) -> str:
    return ", ".join(f"{value} on {host}" for host, value in values.items())


def worst(findings: Iterable[Finding]) -> Level:
    """The highest severity."""
    order = list(Level)
    return max((finding.level for finding in findings), key=order.index, default=Level.OK)
