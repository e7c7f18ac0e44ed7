"""Single variables of `tfddl._src.cluster`: numbers with bounds, and the address of rank 0."""

import re

import pytest

from tfddl._src.cluster.environment_variables import (
    consecutive_ports,
    read_int,
    read_port,
    read_start_timeout,
)
from tfddl._src.cluster.environments import kubeflow
from tfddl._src.cluster.environments.master_address import read_master
from tfddl.errors import ClusterError


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("", None), ("5", 5.0), ("0.25", 0.25), ("1e3", 1000.0)]
)
def test_start_timeout(text: str | None, seconds: float | None) -> None:
    environ = {} if text is None else {"TFDDL_START_TIMEOUT": text}
    assert read_start_timeout(environ) == seconds


# 1e999 is infinite as a float; the others are what float() takes and people don't mean.
@pytest.mark.parametrize(
    "text", ["0", "-1", "0.0", "1e999", "inf", "nan", "1_0", "٣", "x", " 5", "1e", "9" * 41]
)
def test_wrong_start_timeouts(text: str) -> None:
    with pytest.raises(ClusterError, match=r"TFDDL_START_TIMEOUT is .* above 0, are expected"):
        read_start_timeout({"TFDDL_START_TIMEOUT": text})


def test_ints_have_inclusive_bounds() -> None:
    assert [read_int({"N": text}, "N", low=1, high=3) for text in ("1", "3")] == [1, 3]
    for text in ("0", "4", "-1", "", "x"):
        with pytest.raises(ClusterError, match="^N is "):
            read_int({"N": text}, "N", low=1, high=3)
    with pytest.raises(ClusterError, match="N is not set"):
        read_int({}, "N")
    assert read_int({"N": "0"}, "N") == 0


def test_ports() -> None:
    assert read_port({}) is None
    assert read_port({"TFDDL_PORT": ""}) is None
    assert [read_port({"TFDDL_PORT": text}) for text in ("1", "65535")] == [1, 65535]
    for text in ("0", "65536"):
        with pytest.raises(ClusterError, match="TFDDL_PORT"):
            read_port({"TFDDL_PORT": text})


def test_consecutive_ports() -> None:
    assert consecutive_ports({}, 2) == range(12345, 12347)
    assert consecutive_ports({}, 1, default=1) == range(1, 2)
    assert consecutive_ports({"TFDDL_PORT": "1"}, 3) == range(1, 4)
    assert consecutive_ports({"TFDDL_PORT": "65534"}, 2) == range(65534, 65536)
    with pytest.raises(ClusterError, match=re.escape("it must be 1..65534")):
        consecutive_ports({"TFDDL_PORT": "65535"}, 2)


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({"TFDDL_MASTER": "a"}, "a:12345"),
        ({"TFDDL_MASTER": "a", "TFDDL_PORT": "7"}, "a:7"),
        ({"TFDDL_MASTER": "a:9"}, "a:9"),
        ({"TFDDL_MASTER": "::1"}, "[::1]:12345"),
        ({"TFDDL_MASTER": "[::1]"}, "[::1]:12345"),
        ({"TFDDL_MASTER": "[::1]:9"}, "[::1]:9"),
        ({"MASTER_ADDR": "a"}, "a:12345"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "8"}, "a:8"),
        ({"MASTER_ADDR": "[::1]", "MASTER_PORT": "8"}, "[::1]:8"),
        # torchrun's agent listens at MASTER_PORT itself.
        ({"MASTER_ADDR": "a", "MASTER_PORT": "8", "TORCHELASTIC_USE_AGENT_STORE": "True"}, "a:9"),
        (
            {"MASTER_ADDR": "a", "MASTER_PORT": "65535", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            "a:65534",
        ),
        (
            {"MASTER_ADDR": "a", "MASTER_PORT": "65534", "TORCHELASTIC_USE_AGENT_STORE": "True"},
            "a:65535",
        ),
    ],
)
def test_the_address_of_rank_0(environ: dict[str, str], address: str) -> None:
    found = read_master(environ)
    assert found is not None
    assert found[0] == address


@pytest.mark.parametrize(
    "environ",
    [
        {"TFDDL_MASTER": "a b"},
        {"TFDDL_MASTER": "a b:9"},
        {"TFDDL_MASTER": "[::1"},
        {"TFDDL_MASTER": "a]"},
        {"MASTER_ADDR": "a b"},
        {"MASTER_ADDR": "a b", "MASTER_PORT": "8"},
        {"MASTER_ADDR": "a", "MASTER_PORT": "0"},
        {"MASTER_ADDR": "a", "MASTER_PORT": "65536"},
    ],
)
def test_what_is_no_address_of_rank_0(environ: dict[str, str]) -> None:
    with pytest.raises(ClusterError, match="MASTER"):
        read_master(environ)


def test_no_address_of_rank_0() -> None:
    assert read_master({}) is None
    assert read_master({"TFDDL_MASTER": "", "MASTER_ADDR": ""}) is None


def test_a_kubeflow_pod() -> None:
    pod = kubeflow.find({"PET_NNODES": "1", "PET_MASTER_ADDR": "[::1]"})
    assert pod is not None
    assert (pod.node_rank, pod.num_nodes, pod.master) == (0, 1, "[::1]:29500")
    pod = kubeflow.find({"PET_NNODES": "3", "PET_NODE_RANK": "2"})
    assert pod is not None
    assert (pod.node_rank, pod.master) == (2, None)


@pytest.mark.parametrize(
    ("nodes", "node_rank", "address", "message"),
    [
        ("2", "", "a", "PET_NODE_RANK is not set"),
        ("2", "2", "a", r"it must be 0\.\.1"),
        ("1", "1", "a", r"it must be 0\.\.0"),
        ("2", "0", "a b", "PET_MASTER_ADDR with PET_MASTER_PORT"),
    ],
)
def test_wrong_kubeflow_pods(nodes: str, node_rank: str, address: str, message: str) -> None:
    environ = {"PET_NNODES": nodes, "PET_MASTER_ADDR": address}
    if node_rank:
        environ["PET_NODE_RANK"] = node_rank
    with pytest.raises(ClusterError, match=message):
        kubeflow.find(environ)
