import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfddl._src.cluster import Cluster, detect, join_address
from tfddl._src.cluster.environments import mpi, slurm, tf_config
from tfddl.errors import ClusterError


@pytest.fixture(autouse=True)
def without_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where mpi4py isn't installed; `test_cluster_mpi.py` tries it."""
    monkeypatch.setattr(
        "tfddl._src.cluster.environments.mpi_address.exchange", lambda *_, **__: None
    )


FOUR = ("a:1", "b:1", "a:2", "c:1")


def raises(text: str) -> Any:
    return pytest.raises(ClusterError, match=re.escape(text))


@pytest.mark.parametrize(
    ("rank", "host", "local_rank", "local_size", "cross_rank", "cross_size"),
    [
        (0, "a", 0, 2, 0, 3),
        (1, "b", 0, 1, 1, 3),
        (2, "a", 1, 2, 0, 1),  # only host a has a worker of local rank 1
        (3, "c", 0, 1, 2, 3),
    ],
)
def test_ranks_and_sizes(  # noqa: PLR0913
    rank: int, host: str, local_rank: int, local_size: int, cross_rank: int, cross_size: int
) -> None:
    cluster = Cluster(FOUR, rank)
    assert (cluster.size, cluster.rank, cluster.host) == (4, rank, host)
    assert cluster.hosts == ("a", "b", "c")
    assert (cluster.local_rank, cluster.local_size) == (local_rank, local_size)
    assert (cluster.cross_rank, cluster.cross_size) == (cross_rank, cross_size)


def test_a_single_worker() -> None:
    alone = Cluster.single_worker()
    assert alone.addresses == ()
    assert (alone.size, alone.rank, alone.host, alone.hosts) == (1, 0, "localhost", ("localhost",))
    assert (alone.local_rank, alone.local_size, alone.cross_rank, alone.cross_size) == (0, 1, 0, 1)


def test_one_host_has_one_name() -> None:
    cluster = Cluster(("Host:1", "host:2", "[FD00:0::1]:1", "[fd00::1]:2"), 1)
    assert cluster.hosts == ("host", "fd00::1")
    assert (cluster.local_rank, cluster.local_size) == (1, 2)
    assert cluster.ranks_of_hosts == ((0, 1), (2, 3))


def test_ipv6() -> None:
    cluster = Cluster(("[::1]:12345", "[fe80::1%eth0]:1"), 0)
    assert cluster.hosts == ("::1", "fe80::1%eth0")
    assert join_address("::1", 12345) == "[::1]:12345"
    assert join_address("hostA", 12345) == "hostA:12345"


@pytest.mark.parametrize(
    ("addresses", "rank", "message"),
    [
        (("a:1", "b"), 0, "the address of rank 1 is 'b', without a port; expected \"host:port\""),
        (("[::1]",), 0, "the address of rank 0 is '[::1]', without a port"),
        ((":1",), 0, "the address of rank 0 is ':1', without a host"),
        (("::1:1",), 0, "is '::1:1', and '::1' is no host name"),
        (("http://a:1",), 0, "'http://a' is no host name"),
        (("a b:1",), 0, "'a b' is no host name"),
        (("-oProxyCommand=x:1",), 0, "is no host name"),
        (("a:",), 0, "its port must be a number in 1..65535"),
        (("a:0",), 0, "is 'a:0'; its port must be a number in 1..65535"),
        (("a:65536",), 0, "its port must be a number in 1..65535"),
        (("a:+1",), 0, "its port must be a number in 1..65535"),
        (("a:٣",), 0, "its port must be a number in 1..65535"),
        ((3,), 0, "the address of rank 0 is 3; expected"),
        (("a:01",), 0, "its port must be a number in 1..65535, without leading zeros"),
        (("a" * 256 + ":1",), 0, "is no host name"),
        (
            ("a:1", "A:1"),
            0,
            "the address 'A:1' is given twice (as 'a:1'), for ranks 0 and 1; every worker needs",
        ),
        (("[::1]:1", "[0:0::1]:1"), 0, "the address '[0:0::1]:1' is given twice (as '[::1]:1')"),
        (("a:1", "b:1", "a:1"), 0, "the address 'a:1' is given twice, for ranks 0 and 2"),
        (("a:1", "b:1"), 2, "rank is 2 among 2 workers; it must be 0..1"),
        (("a:1", "b:1"), -1, "rank is -1 among 2 workers; it must be 0..1"),
        ((), 1, "rank is 1 among 1 workers; it must be 0..0"),
        (("a:1",), "0", "rank is '0'; it must be an integer"),
        (("a:1", "b:1"), True, "rank is True; it must be an integer"),
    ],
)
def test_refuses_bad_arguments(addresses: Any, rank: Any, message: str) -> None:
    with raises(message):
        Cluster(addresses, rank)


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    hosts = st.sampled_from(["a", "host-1.example.org", "10.0.0.1", "::1", "fe80::2%eth0"])
    places = st.tuples(hosts, st.integers(1, 65535))
    addresses = draw(st.lists(places, unique=True, max_size=8))
    rank = draw(st.integers(0, max(0, len(addresses) - 1)))
    return Cluster(tuple(join_address(*place) for place in addresses), rank)


@given(clusters())
def test_tf_config_reads_what_it_writes(cluster: Cluster) -> None:
    assert tf_config.parse(tf_config.render(cluster)) == cluster


@given(clusters())
def test_ranks_and_sizes_are_consistent(cluster: Cluster) -> None:
    everybody = [Cluster(cluster.addresses, rank) for rank in range(cluster.size)]
    places = {(member.host, member.local_rank) for member in everybody}
    assert len(places) == cluster.size
    for member in everybody:
        assert 0 <= member.local_rank < member.local_size
        assert 0 <= member.cross_rank < member.cross_size <= len(member.hosts)
        alike = [m for m in everybody if m.local_rank == member.local_rank]
        assert [m.cross_rank for m in alike].count(member.cross_rank) == 1
        assert len(alike) == member.cross_size


def config(**changes: Any) -> str:
    whole = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    return json.dumps({**whole, **changes})


def test_tf_config() -> None:
    assert tf_config.parse(config()) == Cluster(("a:1", "b:1"), 1)
    assert tf_config.parse(config(environment="cloud", rpc_layer="grpc")).rank == 1
    assert tf_config.parse("  ") == Cluster.single_worker()
    with_chief = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}
    text = config(cluster=with_chief)
    assert tf_config.parse(text) == Cluster(("c:1", "a:1", "b:1"), 2)
    text = config(cluster=with_chief, task={"type": "chief", "index": 0})
    assert tf_config.parse(text) == Cluster(("c:1", "a:1", "b:1"), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'cluster': 1}", "TF_CONFIG is not JSON (Expecting property name"),
        ("{'cluster': 1}", ': "{\'cluster\': 1}". HINT: it looks like {"cluster"'),
        ("[1, 2]", "TF_CONFIG is [1, 2]; expected an object, {"),
        ("{}", 'TF_CONFIG has no "cluster" (keys found: nothing); expected {"cluster"'),
        ('{"task": {}}', "has no \"cluster\" (keys found: 'task'"),
        # Of many, the first eight.
        (json.dumps(dict.fromkeys("abcdefghi", 1)), "and 'g' and 'h'); expected"),
        (config(cluster=["a:1"]), 'cluster in TF_CONFIG is ["a:1"]; expected an object'),
        (config(cluster={}), "TF_CONFIG names no worker: {}; expected"),
        (config(cluster={"worker": []}), 'TF_CONFIG names no worker: {"worker": []}'),
        (config(cluster={"worker": "a:1"}), "cluster.worker in TF_CONFIG is 'a:1'; expected a"),
        (
            config(cluster={"worker": ["a:1"], "ps": ["b:1"]}),
            "TF_CONFIG names 1 parameter server (tasks of type 'ps'), and tfddl has none: workers "
            "average their gradients among themselves. HINT: set the replicas of 'ps' to 0",
        ),
        (
            config(cluster={"worker": ["a:1"], "tpu": ["b:1"]}),
            "TF_CONFIG names tasks of type 'tpu'; tfddl runs 'chief' and 'worker' only. HINT: "
            "every process trains, so leave 'tpu' out",
        ),
        (config(cluster={"chief": ["a:1", "b:1"]}), 'TF_CONFIG names 2 chiefs, ["a:1", "b:1"]'),
        ('{"cluster": {"worker": ["a:1"]}}', 'TF_CONFIG has no "task", which says who'),
        (config(task=1), "task in TF_CONFIG is 1; expected an object"),
        (config(task={"index": 0}), "task.type in TF_CONFIG is null; tfddl runs"),
        (
            config(task={"type": "evaluator", "index": 0}),
            "TF_CONFIG makes this process an evaluator, and tfddl has none: the workers evaluate "
            "together, in fit(validation_data=…) and evaluate(). They train without this process. "
            "HINT: leave the evaluator out of the job",
        ),
        (
            config(task={"type": "ps", "index": 0}),
            "TF_CONFIG makes this process a parameter server, and tfddl has none",
        ),
        (config(task={"type": ["worker"], "index": 0}), 'task.type in TF_CONFIG is ["worker"]'),
        (
            config(cluster={"chief": ["a:1"], "master": ["b:1"]}),
            'TF_CONFIG names 2 chiefs, ["a:1", "b:1"]',
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "cluster": {"worker": ["b:1"]}}',
            "TF_CONFIG is not JSON (the key 'cluster' is given twice)",
        ),
        (config(task={"type": "chief", "index": 0}), "is 'chief', but its cluster has only 'work"),
        (config(task={"type": "worker"}), "task.index in TF_CONFIG is null; expected an integer"),
        (config(task={"type": "worker", "index": "1"}), "task.index in TF_CONFIG is '1'; expected"),
        (config(task={"type": "worker", "index": True}), "task.index in TF_CONFIG is true"),
        (
            config(
                cluster={"worker": ["a:1", "b:1", "c:1", "d:1"]},
                task={"type": "worker", "index": 4},
            ),
            "TF_CONFIG names 4 workers but task.index is 4; it must be 0..3. HINT: ",
        ),
        (
            config(cluster={"worker": ["a:1"]}),
            "TF_CONFIG names 1 worker but task.index is 1; it must be 0. HINT: ",
        ),
        (config(cluster={"worker": ["a:1", "a:1"]}), "TF_CONFIG: the address 'a:1' is given twice"),
        (config(cluster={"worker": ["a", "b:1"]}), "TF_CONFIG: the address of rank 0 is 'a', with"),
    ],
)
def test_tf_config_says_what_is_wrong(text: str, message: str) -> None:
    with raises(message):
        tf_config.parse(text)


def test_long_values_are_quoted_in_part() -> None:
    with pytest.raises(ClusterError) as caught:
        tf_config.parse("x" * 10000)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("gpu", ("gpu",)),
        ("node[01-03,7],gpu2", ("node01", "node02", "node03", "node7", "gpu2")),
        ("a,b-c.d[9-11]", ("a", "b-c.d9", "b-c.d10", "b-c.d11")),
        ("r[0-1]n[1-2]x", ("r0n1x", "r0n2x", "r1n1x", "r1n2x")),
    ],
)
def test_slurm_host_lists(text: str, hosts: tuple[str, ...]) -> None:
    assert slurm.expand_hosts(text) == hosts


@pytest.mark.parametrize("text", ["", "a,,b", "n[1-2", "n1-2]", "n[[1]]", "n[a-b]", "n[1-2]]"])
def test_slurm_refuses_other_host_lists(text: str) -> None:
    with raises(f"SLURM_STEP_NODELIST is {text!r}; expected a list of hosts"):
        slurm.expand_hosts(text)


def step(**changes: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "5",
        "SLURM_STEP_NODELIST": "n[1-3]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
        "SLURM_PROCID": "3",
    } | changes


def test_slurm() -> None:
    block = ("n1:12345", "n1:12346", "n2:12345", "n2:12346", "n3:12345")
    assert slurm.parse(step()) == Cluster(block, 3, "7.0")
    assert slurm.parse(step(SLURM_NODEID="1", SLURM_LOCALID="1")) == Cluster(block, 3, "7.0")
    assert slurm.parse(step(SLURM_DISTRIBUTION="block:cyclic")) == Cluster(block, 3, "7.0")
    cyclic = ("n1:12345", "n2:12345", "n3:12345", "n1:12346", "n2:12346")
    assert slurm.parse(step(SLURM_DISTRIBUTION="cyclic")) == Cluster(cyclic, 3, "7.0")
    reserved = slurm.parse(step(SLURM_STEP_RESV_PORTS="12000,12007-12008"))
    assert reserved is not None
    assert reserved.addresses[:3] == ("n1:12000", "n1:12007", "n2:12000")
    moved = slurm.parse(step(TFDDL_PORT="500"))
    assert moved is not None
    assert moved.addresses[:2] == ("n1:500", "n1:501")


def test_slurm_outside_of_a_step_is_none() -> None:
    assert slurm.parse({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}) is None
    assert slurm.parse(step(SLURM_STEP_NUM_TASKS="1", SLURM_PROCID="0")) is None
    assert slurm.parse({}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS is 'x'; expected a number"),
        ({"SLURM_PROCID": "-1"}, "SLURM_PROCID is '-1'; expected a number"),
        ({"SLURM_PROCID": "5"}, "Slurm's variables: rank is 5 among 5 workers; it must be 0..4"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2x"}, "is '2x'; expected counts like \"2(x3),1\""),
        (
            {"SLURM_STEP_TASKS_PER_NODE": "2,1"},
            "SLURM_STEP_NODELIST names 3 hosts, SLURM_STEP_TASKS_PER_NODE is '2,1' and "
            "SLURM_STEP_NUM_TASKS is 5; one number of tasks per host, 5 together, is expected",
        ),
        (
            {"SLURM_STEP_RESV_PORTS": "12000"},
            "1 ports, but a host has 2 workers. HINT: srun --resv",
        ),
        ({"SLURM_STEP_RESV_PORTS": "a"}, "is 'a'; expected ports like \"12000-12003\""),
        ({"SLURM_DISTRIBUTION": "plane=2"}, "SLURM_DISTRIBUTION is 'plane=2'; tfddl supports"),
        (
            {"SLURM_NODEID": "0", "SLURM_LOCALID": "1"},
            "Slurm started rank 3 with SLURM_NODEID=0, but 1 follows from SLURM_STEP_NODELIST",
        ),
        (
            {"TFDDL_PORT": "65535"},
            "TFDDL_PORT is 65535, and a host has 2 workers; it must be 1..65",
        ),
        ({"TFDDL_PORT": "http"}, "TFDDL_PORT is 'http'; expected a number"),
    ],
)
def test_slurm_says_what_is_wrong(changes: dict[str, str], message: str) -> None:
    with raises(message):
        slurm.parse(step(**changes))


def test_slurm_says_what_is_missing() -> None:
    variables = step()
    del variables["SLURM_PROCID"]
    with raises("SLURM_PROCID is not set; expected a number"):
        slurm.parse(variables)


def ompi(*numbers: int, **more: str) -> dict[str, str]:
    """Variables of rank, size, local rank and local size."""
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    values = zip(names, numbers, strict=True)
    return {f"OMPI_COMM_WORLD_{name}": str(number) for name, number in values} | more


def test_mpi() -> None:
    assert mpi.parse({}) is None
    assert mpi.parse(ompi(0, 1, 0, 1)) is None  # alone, unless something else knows better
    one_host = ("127.0.0.1:12345", "127.0.0.1:12346", "127.0.0.1:12347")
    assert mpi.parse(ompi(2, 3, 2, 3)) == Cluster(one_host, 2)
    two_hosts = ("a:700", "a:701", "[::1]:700")
    variables = ompi(2, 3, 0, 1, TFDDL_HOSTS="a:2,[::1]:1", TFDDL_PORT="700")
    assert mpi.parse(variables) == Cluster(two_hosts, 2)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            ompi(0, 4, 0, 2),
            "Open MPI started 4 workers, 2 of them on this host, and doesn't say where the others "
            "are. HINT: pip install 'tfddl[mpi]' on every host; or mpirun -x TFDDL_MASTER=hostA …, "
            "the host of rank 0; or mpirun -x TFDDL_HOSTS=hostA:2,hostB:2 …, all hosts with their "
            "slots (mpiexec -genv NAME VALUE in MPICH and Intel MPI)",
        ),
        (
            ompi(0, 4, 0, 2, TFDDL_HOSTS="a:2,b:1"),
            "TFDDL_HOSTS is 'a:2,b:1', 3 slots, but Open MPI started 4 workers; they must be equal",
        ),
        (ompi(0, 4, 0, 2, TFDDL_HOSTS="a:2,b"), "and 'b' is not \"host:slots\""),
        (
            ompi(0, 4, 0, 2, TFDDL_HOSTS="a:4,b:0"),
            "the slots of 'b' in TFDDL_HOSTS is '0'; expected a number in 1..65536",
        ),
        (
            ompi(1, 4, 0, 2, TFDDL_HOSTS="a:2,b:2"),
            "Open MPI started rank 1 with local rank 0, but 1 follows from TFDDL_HOSTS, 'a:2,b:2'"
            ". HINT: mpirun --map-by slot fills one host after the other, in the order of TFDDL",
        ),
        (ompi(0, 2, 0, 1, TFDDL_HOSTS="a:1,a:1"), "TFDDL_HOSTS: the address 'a:12345' is"),
        (ompi(5, 4, 0, 4), "Open MPI's variables: rank is 5 among 4 workers"),
        ({"OMPI_COMM_WORLD_RANK": "1"}, "OMPI_COMM_WORLD_SIZE is not set"),
    ],
)
def test_mpi_says_what_is_wrong(variables: dict[str, str], message: str) -> None:
    with raises(message):
        mpi.parse(variables)


def test_detects_in_order() -> None:
    everything = {**step(), **ompi(0, 2, 0, 2), "TF_CONFIG": config()}
    assert detect(everything) == Cluster(("a:1", "b:1"), 1)
    everything["TF_CONFIG"] = ""
    found = detect(everything), detect(step())
    assert [isinstance(one, Cluster) and one.addresses[0] for one in found] == [
        "127.0.0.1:12345",
        "n1:12345",
    ]
    assert detect({"HOME": "/"}) == Cluster.single_worker()


def test_a_wrong_environment_is_never_a_single_worker() -> None:
    with raises("TF_CONFIG is not JSON"):
        detect({**step(), "TF_CONFIG": "?"})


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tfddl.cluster", *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, check=False)


def test_command_prints_the_tf_config() -> None:
    done = command("--hosts", "a:1, b:1", "--index", "1")
    assert (done.returncode, done.stderr) == (0, "")
    assert tf_config.parse(done.stdout) == Cluster(("a:1", "b:1"), 1)


def test_command_says_what_is_wrong() -> None:
    done = command("--hosts", "a:1,b", "--index", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("--hosts a:1,b --index 1: the address of rank 1 is 'b', without")


def test_loads_no_tensorflow() -> None:
    script = "import sys, tfddl._src.cluster; sys.exit('tensorflow' in sys.modules)"
    line = [sys.executable, "-c", script]
    assert subprocess.run(line, env=dict(os.environ), timeout=60, check=False).returncode == 0
