"""TF_CONFIG, the variable by which TensorFlow's own runtime learns who takes part."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tfddl.cluster.cluster import Cluster
from tfddl.errors import ClusterError

VARIABLE = "TF_CONFIG"

_EXAMPLE = (
    '{"cluster": {"worker": ["hostA:12345", "hostB:12345"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
_RUNNABLE = ("chief", "worker")
_LONGEST_QUOTE = 200


def parse(text: str) -> Cluster:
    """Reads and checks a TF_CONFIG.

    A cluster of "chief" and "worker" is accepted: the chief is rank 0, and worker i is rank
    i + 1. Keys that don't say who takes part ("environment", "rpc_layer") are left alone.

    Args:
        text: the variable's value. Nothing but blanks means one worker, alone.

    Raises:
        ClusterError: the message quotes what was found and says what was expected.
    """
    if not text.strip():
        return Cluster.alone()
    config = _decode(text)
    tasks = _tasks(config)
    chiefs, workers = tasks.get("chief", []), tasks.get("worker", [])
    kind, index = _task(config, tasks)
    rank = index if kind == "chief" else len(chiefs) + index
    try:
        return Cluster(addresses=(*chiefs, *workers), rank=rank)
    except ClusterError as error:
        raise ClusterError(f"{VARIABLE}: {error}") from None


def render(cluster: Cluster) -> str:
    """Writes a cluster as a TF_CONFIG that `parse` reads back; "" for a worker that is alone.

    A chief is written as worker 0, which means the same to TensorFlow.
    """
    if not cluster.addresses:
        return ""
    task = {"type": "worker", "index": cluster.rank}
    return json.dumps({"cluster": {"worker": list(cluster.addresses)}, "task": task})


def _decode(text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise ClusterError(
            f"{VARIABLE} is not JSON ({error}): {_quote(text)}. HINT: it looks like {_EXAMPLE}, "
            "with double quotes"
        ) from None
    return _object(config, VARIABLE, _EXAMPLE)


def _tasks(config: dict[str, Any]) -> dict[str, list[Any]]:
    """The addresses of each type of task, known to be of types that we run."""
    if "cluster" not in config:
        raise ClusterError(
            f'{VARIABLE} has no "cluster" (keys found: {_names(config)}); expected {_EXAMPLE}. '
            f"HINT: unset {VARIABLE} to run one worker"
        )
    tasks = _object(config["cluster"], f"cluster in {VARIABLE}", '{"worker": ["hostA:12345"]}')
    for kind, addresses in tasks.items():
        if kind not in _RUNNABLE:
            raise ClusterError(
                f"{VARIABLE} names tasks of type {kind!r}; tfddl runs "
                f"{_names(_RUNNABLE)} only. HINT: every process trains and none serves "
                f"parameters or only evaluates, so leave {kind!r} out"
            )
        if not isinstance(addresses, list):
            raise ClusterError(
                f"cluster.{kind} in {VARIABLE} is {_quote(addresses)}; expected a list of addresses"
            )
    if not any(tasks.values()):
        raise ClusterError(f"{VARIABLE} names no worker: {_quote(tasks)}; expected {_EXAMPLE}")
    if len(tasks.get("chief", [])) > 1:
        raise ClusterError(
            f"{VARIABLE} names {len(tasks['chief'])} chiefs, {_quote(tasks['chief'])}; there can "
            "be one. HINT: make the others workers"
        )
    return tasks


def _task(config: dict[str, Any], tasks: dict[str, list[Any]]) -> tuple[str, int]:
    """The type and index of this process, known to be in the cluster."""
    example = '{"type": "worker", "index": 0}'
    if "task" not in config:
        raise ClusterError(
            f'{VARIABLE} has no "task", which says who of the cluster this process is; '
            f'expected "task": {example}, with another index in every process'
        )
    task = _object(config["task"], f"task in {VARIABLE}", example)
    kind, index = task.get("type"), task.get("index")
    if kind not in _RUNNABLE:
        raise ClusterError(
            f"task.type in {VARIABLE} is {_quote(kind)}; tfddl runs {_names(_RUNNABLE)} only"
        )
    if not isinstance(index, int) or isinstance(index, bool):
        raise ClusterError(
            f"task.index in {VARIABLE} is {_quote(index)}; expected an integer. HINT: it is "
            "written without quotes"
        )
    count = len(tasks.get(kind, []))
    if count == 0:
        raise ClusterError(
            f"task.type in {VARIABLE} is {kind!r}, but its cluster has only {_names(tasks)}"
        )
    if not 0 <= index < count:
        raise ClusterError(
            f"{VARIABLE} names {count} {kind}{'s' * (count > 1)} but task.index is {index}; it "
            f"must be {'0' if count == 1 else f'0..{count - 1}'}. HINT: indices count from 0, and "
            "every process has its own"
        )
    return kind, index


def _object(value: object, what: str, example: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ClusterError(f"{what} is {_quote(value)}; expected an object, {example}")
    return value


def _names(names: Iterable[str]) -> str:
    return " and ".join(repr(name) for name in names) or "nothing"


def _quote(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) > _LONGEST_QUOTE:
        text = text[:_LONGEST_QUOTE] + "…"
    return repr(text) if isinstance(value, str) else text
