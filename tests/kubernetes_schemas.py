"""Validates launch/kubernetes strictly, offline, against schemas that PyPI has.

    pip install -e '.[manifests]'
    python -m tests.kubernetes_schemas                 all files, or those that are named

Kubernetes' own kinds, and Jobs and pods in all others: the JSON schemas of its API, with unknown
fields refused (kubernetes-validate). JobSet, TrainingRuntime and TrainJob: the models of Kubeflow
Trainer's API (kubeflow-trainer-api). TFJob: those of the training operator's (kubeflow-training).
These packages take unknown fields in silence: they are looked for here. MPIJob v2beta1 is in no
package: its few fields around the pods are listed here, by hand.
"""

import importlib
import re
import sys
import typing
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests import plain_yaml

FOLDER = Path(__file__).resolve().parent.parent / "launch/kubernetes"
VERSION = "1.31"
"""Of Kubernetes, whose schemas count: the first with all that the files use, and not in beta."""

_TRAINER = {
    ("jobset.x-k8s.io/v1alpha2", "JobSet"): "JobsetV1alpha2JobSet",
    ("trainer.kubeflow.org/v1alpha1", "TrainingRuntime"): "TrainerV1alpha1TrainingRuntime",
    ("trainer.kubeflow.org/v1alpha1", "TrainJob"): "TrainerV1alpha1TrainJob",
}
_TRAINING = {("kubeflow.org/v1", "TFJob"): "KubeflowOrgV1TFJob"}
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?")
# kubeflow/mpi-operator, sdk/python/v2beta1/docs: V2beta1MPIJobSpec.md, V2beta1RunPolicy.md and
# V2beta1ReplicaSpec.md. A pod is what "template" holds.
_MPI_JOB = ("kubeflow.org/v2beta1", "MPIJob")
_REPLICAS = {"replicas": int, "restartPolicy": str, "template": dict}
_MPI_FIELDS: dict[str, Any] = {
    "apiVersion": str,
    "kind": str,
    "metadata": dict,
    "spec": {
        "slotsPerWorker": int,
        "runLauncherAsWorker": bool,
        "sshAuthMountPath": str,
        "launcherCreationPolicy": str,
        "mpiImplementation": str,
        "runPolicy": {
            "activeDeadlineSeconds": int,
            "backoffLimit": int,
            "cleanPodPolicy": str,
            "managedBy": str,
            "schedulingPolicy": dict,
            "suspend": bool,
            "ttlSecondsAfterFinished": int,
        },
        "mpiReplicaSpecs": {"Launcher": _REPLICAS, "Worker": _REPLICAS},
    },
}


def missing_packages() -> str:
    """What has to be installed for it; empty if nothing."""
    names = {
        "kubernetes_validate": "kubernetes-validate",
        "kubeflow_trainer_api": "kubeflow-trainer-api",
        "kubeflow": "kubeflow-training",
    }
    missing = [package for module, package in names.items() if find_spec(module) is None]
    return f"needs {', '.join(missing)}" if missing else ""


def problems(document: Any) -> list[str]:
    """What is wrong with a document, as lines "path: what"; needs the packages."""
    kind = (document.get("apiVersion"), document.get("kind"))
    found: list[str] = []
    if kind in _TRAINER:
        module = importlib.import_module("kubeflow_trainer_api.models")
        found += _of_pydantic(document, getattr(module, _TRAINER[kind]), kind[1])
    elif kind in _TRAINING:
        module = importlib.import_module("kubeflow.training.models")
        found += _of_swagger(document, _TRAINING[kind], kind[1], module)
    elif kind == _MPI_JOB:
        found += _of_fields(document, _MPI_FIELDS, kind[1])
    else:
        return _of_kubernetes(document)
    for path, template in _templates(document, kind[1]):
        if "containers" in template["spec"]:
            whole = {"apiVersion": "v1", "kind": "PodTemplate", "template": template}
        elif "template" in template["spec"]:
            whole = {"apiVersion": "batch/v1", "kind": "Job", **template}
        else:
            continue  # of a JobSet, which the model of the whole has validated
        found += [f"{path}: {text}" for text in _of_kubernetes(whole)]
    return found


def _of_kubernetes(document: Any) -> list[str]:
    validate = importlib.import_module("kubernetes_validate")
    try:
        validate.validate(document, VERSION, strict=True)
    except validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    except validate.SchemaNotFoundError as error:
        return [error.message]
    return []


def _templates(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All templates in a document, of pods, Jobs or JobSets."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _templates(item, f"{path}.{index}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if key == "template" and isinstance(item, dict) and "spec" in item:
                yield f"{path}.{key}", item
            yield from _templates(item, f"{path}.{key}")


def _of_pydantic(value: Any, model: Any, path: str) -> list[str]:
    """Unknown fields; then what the model itself refuses."""
    found = list(_unknown(value, model, path))
    pydantic = importlib.import_module("pydantic")
    try:
        model.model_validate(value)
    except pydantic.ValidationError as error:
        found += [
            f"{path}.{'.'.join(map(str, e['loc']))}: {e['msg']}"
            for e in error.errors()
            if not _is_quantity(e)
        ]
    return found


def _is_quantity(error: Any) -> bool:
    """Whether an error is of a number like "8Gi", for which the models have an empty object."""
    name = error.get("ctx", {}).get("class_name", "")
    return name.endswith("ResourceQuantity") and bool(_QUANTITY.fullmatch(str(error["input"])))


def _unknown(value: Any, model: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown(item, model, f"{path}.{index}")
    elif isinstance(value, dict) and hasattr(model, "model_fields"):
        fields = {field.alias or name: field for name, field in model.model_fields.items()}
        # Timestamps of objects, quantities and the like are models without fields.
        for key, item in value.items() if fields else ():
            if key not in fields:
                yield f"{path}.{key}: no such field"
            else:
                for inner in _models(fields[key].annotation):
                    yield from _unknown(item, inner, f"{path}.{key}")


def _models(annotation: Any) -> list[Any]:
    """The models in Optional[X], List[X] and Dict[str, X]; of a dictionary's values, none."""
    if typing.get_origin(annotation) is dict:
        return []
    inner = typing.get_args(annotation)
    if inner:
        return [model for part in inner for model in _models(part)]
    return [annotation] if hasattr(annotation, "model_fields") else []


def _of_swagger(value: Any, type_name: str, path: str, models: Any) -> list[str]:
    """Unknown fields and wrong types, by the tables that generated clients carry."""
    if match := re.fullmatch(r"dict\(str, (\w+)\)", type_name):
        parts = [
            (item, match[1], f"{path}.{key}")
            for key, item in (value.items() if isinstance(value, dict) else ())
        ]
        return [line for part in parts for line in _of_swagger(*part, models)]
    if match := re.fullmatch(r"list\[(\w+)\]", type_name):
        items = value if isinstance(value, list) else []
        return [
            line
            for index, item in enumerate(items)
            for line in _of_swagger(item, match[1], f"{path}.{index}", models)
        ]
    model = getattr(models, type_name, None)
    if model is None:  # Kubernetes' own are validated by its schemas.
        simple = {"int": int, "str": str, "bool": bool}.get(type_name, object)
        is_right = isinstance(value, simple) and (simple is not int or type(value) is int)
        return [] if is_right else [f"{path}: {value!r} is no {type_name}"]
    if not isinstance(value, dict):
        return [f"{path}: {value!r} is no {type_name}"]
    types = {key: model.openapi_types[name] for name, key in model.attribute_map.items()}
    found = []
    for key, item in value.items():
        if key not in types:
            found.append(f"{path}.{key}: no such field")
        else:
            found += _of_swagger(item, types[key], f"{path}.{key}", models)
    return found


def _of_fields(value: Any, fields: Any, path: str) -> list[str]:
    if isinstance(fields, type):
        return [] if type(value) is fields else [f"{path}: {value!r} is no {fields.__name__}"]
    if not isinstance(value, dict):
        return [f"{path}: {value!r} has no fields"]
    unknown = [f"{path}.{key}: no such field" for key in value if key not in fields]
    return unknown + [
        line
        for key, item in value.items()
        if key in fields
        for line in _of_fields(item, fields[key], f"{path}.{key}")
    ]


def main(files: Sequence[str]) -> int:
    """Validates files; returns 1 where something is wrong."""
    if missing := missing_packages():
        sys.stderr.write(f"{missing}\n")
        return 2
    status = 0
    for path in map(Path, files or sorted(map(str, FOLDER.glob("*.yaml")))):
        for document in plain_yaml.documents(path.read_text()):
            found = problems(document)
            status = max(status, int(bool(found)))
            lines = [f"  {line}\n" for line in found]
            sys.stdout.write(f"{path.name}: {document['kind']} {'wrong' if found else 'valid'}\n")
            sys.stdout.writelines(lines)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
