"""JOB_COMPLETION_INDEX: the index of a pod in an Indexed Job of Kubernetes.

Kubernetes tells a pod neither how many pods there are nor whether they belong together: an Indexed
Job may as well be as many independent trainings.

References:
    Kubernetes, "Indexed Job": https://kubernetes.io/docs/concepts/workloads/controllers/job/, and
    "Job with Pod-to-Pod Communication": a pod's name in DNS is JOB-INDEX.SERVICE,
    https://kubernetes.io/docs/tasks/job/job-with-pod-to-pod-communication/
"""

from __future__ import annotations

from collections.abc import Mapping

from tfddl._src.cluster.environment_variables import read_int

INDEX = "JOB_COMPLETION_INDEX"
NODES = "TFDDL_NNODES"


def find_index(environ: Mapping[str, str]) -> int | None:
    """The index of this pod, from 0; None outside of an Indexed Job.

    Raises:
        ClusterError: it isn't a number.
    """
    return read_int(environ, INDEX, high=10**6) if environ.get(INDEX) else None


def find_num_nodes(environ: Mapping[str, str]) -> int | None:
    """The number of pods in TFDDL_NNODES; None if not set.

    Raises:
        ClusterError: it isn't a number above 0.
    """
    return read_int(environ, NODES, low=1) if environ.get(NODES) else None


def first_host(name: str, index: int) -> str | None:
    """The host name of the first pod of an Indexed Job whose pods have a headless service.

    Args:
        name: fully qualified host name of this pod, "train-2.workers.default.svc.cluster.local".
        index: of this pod.

    Returns:
        "train-0.workers.default.svc.cluster.local"; None where the name has no service, or the
        pod's name doesn't end in the index.
    """
    pod, _, service = name.partition(".")
    job = pod.removesuffix(f"-{index}")
    return f"{job}-0.{service}" if service and job and job != pod else None


def job_name(environ: Mapping[str, str], index: int) -> str:
    """The name of the Job, from the pod's host name; "" where that has another form."""
    # Kubernetes names the pods of an Indexed Job JOB-INDEX, and sets HOSTNAME to that.
    pod = environ.get("HOSTNAME", "").partition(".")[0]
    job = pod.removesuffix(f"-{index}")
    return job if job != pod else ""
