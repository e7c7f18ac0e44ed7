"""SageMaker's variables: one container per host, each knows the names of all.

References:
    sagemaker-training-toolkit, "Environment variables" (SM_HOSTS, SM_CURRENT_HOST, SM_NUM_GPUS,
    SM_NETWORK_INTERFACE_NAME), and "Distributed Training Configuration": hosts are sorted
    lexicographically,
    https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tfddl._src.cluster.cluster import Cluster
from tfddl._src.cluster.environment_variables import read_int
from tfddl._src.cluster.environments.master_address import address_with_default_port
from tfddl._src.cluster.parsing import MAX_CLUSTER_SIZE, parse_json, quote
from tfddl.errors import ClusterError

HOSTS = "SM_HOSTS"
_HOST = "SM_CURRENT_HOST"
_GPUS = "SM_NUM_GPUS"
_INTERFACE = "SM_NETWORK_INTERFACE_NAME"
_JOB = "TRAINING_JOB_NAME"


@dataclass(frozen=True)
class Container:
    """This container as SageMaker describes it.

    Attributes:
        hosts: names of all hosts, sorted: the first one has rank 0.
        index: of this host among them.
        num_gpus: number of its GPUs; 0 if not set.
        job: name of the training job; "" if not set.
    """

    hosts: tuple[str, ...]
    index: int
    num_gpus: int
    job: str


def find(environ: Mapping[str, str]) -> Container | None:
    """Reads SageMaker's variables; None elsewhere.

    Raises:
        ClusterError: SM_HOSTS is no JSON list of names, or SM_CURRENT_HOST isn't in it.
    """
    if not environ.get(HOSTS):
        return None
    hosts = _hosts(environ[HOSTS])
    host = environ.get(_HOST, "")
    if host not in hosts:
        raise ClusterError(
            f"{_HOST} is {quote(host)}, which isn't among {HOSTS}, {quote(environ[HOSTS])}"
        )
    return Container(
        hosts=hosts,
        index=hosts.index(host),
        # SageMaker sets 0 on instances without GPUs.
        num_gpus=read_int(environ, _GPUS) if environ.get(_GPUS) else 0,
        job=environ.get(_JOB, ""),
    )


def build_cluster(container: Container, environ: Mapping[str, str]) -> Cluster:
    """The cluster of a script that runs once on each host.

    Raises:
        ClusterError: a name is no host name.
    """
    addresses = tuple(
        address_with_default_port(environ, host, f"a host of {HOSTS}") for host in container.hosts
    )
    return Cluster(addresses=addresses, rank=container.index, job=container.job)


def read_network_interface(environ: Mapping[str, str]) -> str | None:
    """The network interface between the hosts (SM_NETWORK_INTERFACE_NAME); None elsewhere."""
    return environ.get(_INTERFACE) or None


def _hosts(text: str) -> tuple[str, ...]:
    hosts = parse_json(text, what=HOSTS)
    if (
        not isinstance(hosts, list)
        or not 1 <= len(hosts) <= MAX_CLUSTER_SIZE
        or not all(isinstance(host, str) and host for host in hosts)
    ):
        raise ClusterError(f'{HOSTS} is {quote(text)}; expected names like ["algo-1","algo-2"]')
    if len(set(hosts)) != len(hosts):
        raise ClusterError(f"{HOSTS} names a host twice: {quote(text)}")
    # Every host must have the same order, whatever order it was given.
    return tuple(sorted(hosts))
