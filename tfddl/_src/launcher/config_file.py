"""The file that `horovodrun --config-file` takes: flags by two levels of names, in YAML.

Only what such a file consists of is read: a name and a plain value per line, sections indented. A
library for all of YAML would be a dependency for nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from tfddl.errors import LaunchError

_SECTIONS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "": {"verbose": "--verbose"},
        "params": {
            "fusion_threshold_mb": "--fusion-threshold-mb=",
            "cycle_time_ms": "--cycle-time-ms=",
            "cache_capacity": "--cache-capacity=",
            "hierarchical_allreduce": "--hierarchical-allreduce",
            "hierarchical_allgather": "--hierarchical-allgather",
            "torus_allreduce": "--torus-allreduce",
        },
        "autotune": {
            "enabled": "--autotune",
            "log_file": "--autotune-log-file=",
            "warmup_samples": "--autotune-warmup-samples=",
            "steps_per_sample": "--autotune-steps-per-sample=",
            "bayes_opt_max_samples": "--autotune-bayes-opt-max-samples=",
            "gaussian_process_noise": "--autotune-gaussian-process-noise=",
        },
        "timeline": {
            "filename": "--timeline-filename=",
            "mark_cycles": "--timeline-mark-cycles",
        },
        "stall_check": {
            "enabled": "--stall-check",
            "warning_time_seconds": "--stall-check-warning-time-seconds=",
            "shutdown_time_seconds": "--stall-check-shutdown-time-seconds=",
        },
        "library_options": {
            "mpi_threads_disable": "--mpi-threads-disable",
            "num_nccl_streams": "--num-nccl-streams=",
            "thread_affinity": "--thread-affinity=",
            "gloo_timeout_seconds": "--gloo-timeout-seconds=",
        },
        "logging": {"level": "--log-level=", "with_timestamp": "--log-with-timestamp"},
    }
)
"""By section: names, and the flags that they stand for; those with "=" take the value."""

_NEGATIVE = {
    "--verbose": None,
    "--log-with-timestamp": "--log-without-timestamp",
}
"""What a switch is called that is off, where it isn't --no-…; None: it has no such name."""

_CONTROLLERS = {"gloo": "--gloo", "mpi": "--mpi"}
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def read_flags(path: Path) -> list[str]:
    """The flags that a file stands for.

    Raises:
        LaunchError: It can't be read, or has something else in it.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise LaunchError(f"--config-file {path} can't be read: {error.strerror}") from None
    return [flag for flag in (_flag(path, *entry) for entry in _entries(path, text)) if flag]


def _entries(path: Path, text: str) -> Iterator[tuple[int, str, str, str]]:
    """Line, section, name and value of each setting."""
    section = ""
    for number, raw in enumerate(text.splitlines(), start=1):
        line = _without_comment(raw).rstrip()
        if not line.strip() or line.lstrip().startswith("#") or line == "---":
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise LaunchError(f"{path}, line {number}: {line.strip()!r} is no 'name: value'")
        if not line[0].isspace():
            section = "" if value.strip() else name.strip()
            if not value.strip():
                continue
        yield number, section, name.strip(), value.strip().strip("\"'")


def _without_comment(line: str) -> str:
    """A "#" within quotes is part of the value."""
    match = re.match(r"""((?:[^"'#]|"[^"]*"|'[^']*')*?)(?:(?:^|\s)#.*)?$""", line)
    return line if match is None else match[1]


def _flag(path: Path, number: int, section: str, name: str, value: str) -> str | None:
    place = f"{path}, line {number}"
    if (section, name) == ("", "controller"):
        return _CONTROLLERS.get(value.lower()) or _refuse(place, name, value, _CONTROLLERS)
    known = _SECTIONS.get(section)
    if known is None:
        _refuse(place, "section", section, [known for known in _SECTIONS if known])
    if name not in known:
        _refuse(place, f"a setting of {section}" if section else "name", name, known)
    flag = known[name]
    if flag.endswith("="):
        return flag + value
    if value.lower() not in _TRUTH:
        _refuse(place, name, value, ("true", "false"))
    if _TRUTH[value.lower()]:
        return flag
    return _NEGATIVE.get(flag, f"--no-{flag.removeprefix('--')}")


def _refuse(place: str, what: str, found: str, expected: Iterable[str]) -> NoReturn:
    names = ", ".join(expected)
    raise LaunchError(f"{place}: {what} is {found!r}; it must be one of {names}")
