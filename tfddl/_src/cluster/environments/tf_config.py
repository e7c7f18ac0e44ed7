"""TF_CONFIG, in which TensorFlow's own runtime reads the cluster.

Engines write it too (Kubeflow's TFJob, Vertex AI, SageMaker, Alibaba PAI), each in a dialect.

References:
    TensorFlow, "Multi-worker training with Keras":
    https://www.tensorflow.org/tutorials/distribute/multi_worker_with_keras; Google Cloud,
    "TF_CONFIG and distributed training" (chief or master, ps, evaluators outside of the cluster):
    https://cloud.google.com/ai-platform/training/docs/distributed-training-details; Kubeflow,
    `genTFConfigJSONStr` of the training operator.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tfddl._src.cluster.cluster import Cluster
from tfddl._src.cluster.parsing import parse_json, quote
from tfddl.errors import ClusterError

VARIABLE = "TF_CONFIG"

_EXAMPLE = (
    '{"cluster": {"worker": ["hostA:12345", "hostB:12345"]}, '
    '"task": {"type": "worker", "index": 0}}'
)
_RUNNABLE = ("chief", "worker")
# TensorFlow 1's name of a chief that also evaluates; Vertex AI and SageMaker may still use it.
_MASTER = "master"
_SERVER = "ps"
_MAX_NAMES = 8
_EVALUATOR = "evaluator"


def parse(text: str) -> Cluster:
    """Reads and checks a TF_CONFIG.

    A cluster of "chief" (or "master") and "worker" is accepted: the chief is rank 0, and worker i
    is rank i + 1. Evaluators are left out: they take no part in training. Other keys
    ("environment", "rpc_layer", "job") and types without tasks are ignored.

    Args:
        text: the variable's value. Only blanks mean a single worker.

    Raises:
        ClusterError: the text is wrong; the message quotes it and says what was expected. Also in
            evaluators and parameter servers, which tfddl hasn't: the workers train without them.
    """
    if not text.strip():
        return Cluster.single_worker()
    config = _decode(text)
    _refuse_other_roles(config)
    tasks = _tasks(config)
    chiefs, workers = tasks.get("chief", []), tasks.get("worker", [])
    kind, index = _task(config, tasks)
    # As TensorFlow orders them: the chief first.
    rank = index if kind == "chief" else len(chiefs) + index
    try:
        return Cluster(addresses=(*chiefs, *workers), rank=rank)
    except ClusterError as error:
        raise ClusterError(f"{VARIABLE}: {error}") from None


def render(cluster: Cluster) -> str:
    """Writes a cluster as a TF_CONFIG that `parse` reads back; "" for a single worker.

    A chief is written as worker 0, which means the same to TensorFlow.
    """
    if not cluster.addresses:
        return ""
    task = {"type": "worker", "index": cluster.rank}
    return json.dumps({"cluster": {"worker": list(cluster.addresses)}, "task": task})


def _decode(text: str) -> dict[str, Any]:
    hint = f". HINT: it looks like {_EXAMPLE}, with double quotes"
    return _object(parse_json(text, what=VARIABLE, hint=hint), VARIABLE, _EXAMPLE)


def _refuse_other_roles(config: dict[str, Any]) -> None:
    """Refuses processes that were started for another role than training."""
    task = config.get("task")
    kind = task.get("type") if isinstance(task, dict) else None
    if kind == _EVALUATOR:
        raise ClusterError(
            f"{VARIABLE} makes this process an evaluator, and tfddl has none: the workers evaluate "
            "together, in fit(validation_data=…) and evaluate(). They train without this process. "
            "HINT: leave the evaluator out of the job"
        )
    if kind == _SERVER:
        raise ClusterError(
            f"{VARIABLE} makes this process a parameter server, and tfddl has none: workers "
            f"average their gradients among themselves. HINT: set the replicas of {_SERVER!r} to 0"
        )


def _tasks(config: dict[str, Any]) -> dict[str, list[Any]]:
    """The addresses of chiefs and workers."""
    if "cluster" not in config:
        raise ClusterError(
            f'{VARIABLE} has no "cluster" (keys found: {_names(config)}); expected {_EXAMPLE}. '
            f"HINT: unset {VARIABLE} to run one worker"
        )
    named = _object(config["cluster"], f"cluster in {VARIABLE}", '{"worker": ["hostA:12345"]}')
    tasks: dict[str, list[Any]] = {}
    for kind, addresses in named.items():
        if not isinstance(addresses, list):
            raise ClusterError(
                f"cluster.{quote(kind)[1:-1]} in {VARIABLE} is {quote(addresses)}; expected a list "
                "of addresses"
            )
        if addresses and kind != _EVALUATOR:
            _check_kind(kind, addresses)
            tasks.setdefault("chief" if kind == _MASTER else kind, []).extend(addresses)
    if not tasks:
        raise ClusterError(f"{VARIABLE} names no worker: {quote(named)}; expected {_EXAMPLE}")
    if len(tasks.get("chief", [])) > 1:
        raise ClusterError(
            f"{VARIABLE} names {len(tasks['chief'])} chiefs, {quote(tasks['chief'])}; there can "
            "be one. HINT: make the others workers"
        )
    return tasks


def _check_kind(kind: str, addresses: list[Any]) -> None:
    if kind == _SERVER:
        servers = f"parameter server{'s' * (len(addresses) > 1)} (tasks of type {_SERVER!r})"
        raise ClusterError(
            f"{VARIABLE} names {len(addresses)} {servers}, and tfddl has none: workers average "
            f"their gradients among themselves. HINT: set the replicas of {_SERVER!r} to 0, and "
            "make them workers if you like"
        )
    if kind not in (*_RUNNABLE, _MASTER):
        raise ClusterError(
            f"{VARIABLE} names tasks of type {quote(kind)}; tfddl runs {_names(_RUNNABLE)} only. "
            f"HINT: every process trains, so leave {quote(kind)} out"
        )


def _task(config: dict[str, Any], tasks: dict[str, list[Any]]) -> tuple[str, int]:
    """The type and index of this process, which are in the cluster."""
    example = '{"type": "worker", "index": 0}'
    if "task" not in config:
        raise ClusterError(
            f'{VARIABLE} has no "task", which says who of the cluster this process is; '
            f'expected "task": {example}, with another index in every process'
        )
    task = _object(config["task"], f"task in {VARIABLE}", example)
    kind, index = task.get("type"), task.get("index")
    if kind == _MASTER:
        kind = "chief"
    if not isinstance(kind, str) or kind not in _RUNNABLE:
        raise ClusterError(
            f"task.type in {VARIABLE} is {quote(kind)}; tfddl runs {_names(_RUNNABLE)} only"
        )
    # bool is a subclass of int: "index": true would be 1.
    if not isinstance(index, int) or isinstance(index, bool):
        raise ClusterError(
            f"task.index in {VARIABLE} is {quote(index)}; expected an integer. HINT: it is "
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
        raise ClusterError(f"{what} is {quote(value)}; expected an object, {example}")
    return value


def _names(names: Iterable[str]) -> str:
    return " and ".join(quote(name) for name in list(names)[:_MAX_NAMES]) or "nothing"
