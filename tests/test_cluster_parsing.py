"""Whatever text comes from outside: a value or a `ClusterError`, and soon."""

import contextlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import environments
from tfddl._src.cluster import (
    Cluster,
    detect,
    detect_nodes,
    parse_int,
    parse_json,
    read_cores,
    read_start_timeout,
)
from tfddl._src.cluster.environments import mpi, slurm, tf_config
from tfddl._src.cluster.environments.master_address import read_master
from tfddl._src.cluster.parsing import quote
from tfddl.errors import ClusterError


@pytest.fixture(autouse=True)
def without_mpi4py(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tfddl._src.cluster.environments.mpi_address.exchange", lambda *_, **__: None
    )


@contextlib.contextmanager
def soon(limit_s: float = 3.0) -> Iterator[None]:
    begin = time.monotonic()
    yield
    assert time.monotonic() - begin < limit_s


def check(parse: Callable[["Fuzz"], object], fuzz: "Fuzz") -> None:
    """Either a value, or a `ClusterError` with one line of bounded length."""
    message = "-"
    with contextlib.suppress(ClusterError):
        try:
            parse(fuzz)
        except ClusterError as error:
            message = str(error)
            raise
    assert 0 < len(message) < 3000
    assert "\n" not in message


def raises(text: str) -> Any:
    return pytest.raises(ClusterError, match=re.escape(text))


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("007", 7), ("65536", 65536)])
def test_numbers(text: str, value: int) -> None:
    assert parse_int(text, what="N") == value


@pytest.mark.parametrize(
    "text", ["", " 1", "1 ", "+1", "-1", "1_0", "1.0", "0x1", "٣", "²", "1\n", "65537", "9" * 5000]
)
def test_no_numbers(text: str) -> None:
    with soon(), raises("expected a number in 0..65536"):
        parse_int(text, what="N")


def test_the_longest_of_everything() -> None:
    assert parse_int("0" * 19 + "5", what="N") == 5
    with raises("expected a number"):
        parse_int("0" * 20 + "5", what="N")
    assert parse_json('"1"', what="X", most_bytes=3) == "1"
    assert parse_json('"é"', what="X", most_bytes=4) == "é"
    with raises("X is 4 bytes long; expected at most 3"):
        parse_json('"é"', what="X", most_bytes=3)
    assert parse_json("9" * 20, what="X") == int("9" * 20)
    assert quote("x" * 200) == repr("x" * 200)
    assert quote("x" * 201) == repr("x" * 200 + "…")
    assert slurm.expand_hosts("a" * 255) == ("a" * 255,)
    numbers = ",".join(f"{n:018}" for n in range(55_200))  # Of 19 bytes: 2**20 are too many.
    for text in ("a" * 256, "b," + "a" * 256, "n[1-2,4-3]", "n[1-2],m[4-3]", f"n[{numbers}]"):
        with raises("SLURM_STEP_NODELIST is "):
            slurm.expand_hosts(text)
    assert len(slurm.expand_hosts("n[1-65536]")) == 65536
    with raises("more than 65536 hosts"):
        slurm.expand_hosts("n[1-65536],m")


def test_bounds_of_numbers() -> None:
    assert parse_int("5", what="N", low=5, high=5) == 5
    with raises("N is '4'; expected a number in 5..6"):
        parse_int("4", what="N", low=5, high=6)


def test_json() -> None:
    text = '{"a": [1, 2.5, -3, true, null, "\\ud83d\\ude00 \\" [{"], "b": {}}'
    assert parse_json(text, what="X") == json.loads(text)
    assert parse_json(text.encode(), what="X") == json.loads(text)
    assert parse_json("[" * 64 + "]" * 64, what="X")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "X is not JSON (Expecting value"),
        ("[" * 65 + "]" * 65, "X is nested deeper than 64 levels"),
        ("[" * 1_000_000, "X is nested deeper than 64 levels"),
        ('{"a":' * 100_000, "X is nested deeper than 64 levels"),
        ("[" + "1," * 5_000_000, "X is 10000001 bytes long; expected at most 1048576"),
        ("é" * 600_000, "X is 1200000 bytes long; expected at most 1048576"),
        ('{"a": 1, "b": 2, "a": 1}', "X is not JSON (the key 'a' is given twice)"),
        ("NaN", "X is not JSON (NaN is no number of JSON)"),
        ("[-Infinity]", "X is not JSON (-Infinity is no number of JSON)"),
        ("1e999", "X is not JSON (the number '1e999' is too large)"),
        ("1" * 5000, "X is not JSON (a number of 5000 digits is too long)"),
        ('"\\ud800"', "X has an unpaired surrogate in it"),
        ("\udcff", "X is not text in UTF-8"),  # as os.environ gives bytes that are no UTF-8
        (b"\xff", "X is not text in UTF-8"),
        ('"' + '\\"' * 500_000, "X is not JSON (Unterminated string"),
        ("'a'", "X is not JSON (Expecting value: line 1 column 1 (char 0)): \"'a'\" do this"),
    ],
)
def test_no_json(text: str | bytes, message: str) -> None:
    with soon(), raises(message):
        parse_json(text, what="X", hint=" do this")


def test_fewer_bytes_may_be_asked_for() -> None:
    with raises("X is 3 bytes long; expected at most 2"):
        parse_json("123", what="X", most_bytes=2)


@pytest.mark.parametrize(
    "text",
    [
        "n[0-99999999]",
        "n[0-999999999999999999]",
        "n[0-999][0-999][0-999]",
        "n[1-40000],m[1-40000]",
        "a" * 300 + "[1-2]",
        "n" + "[1]" * 1000,
        "n[" + "9" * 5000 + "]",
        "n[٣]",
        "n[2-1]",
        "n," * 100_000,
        "[" * 100_000,
        "n[1" * 10_000,
    ],
)
def test_host_lists_have_bounds(text: str) -> None:
    with soon(), raises("SLURM_STEP_NODELIST is "):
        slurm.expand_hosts(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "1(x99999999)"}, "expected a number in 1..65536"),
        ({"SLURM_STEP_TASKS_PER_NODE": "9999(x9999)"}, "more than 65536 tasks"),
        ({"SLURM_STEP_TASKS_PER_NODE": "٢(x2)"}, 'expected counts like "2(x3),1"'),
        ({"SLURM_STEP_TASKS_PER_NODE": "0(x2),4"}, "expected a number in 1..65536"),
        ({"SLURM_STEP_RESV_PORTS": "1-99999999"}, 'expected ports like "12000-12003"'),
        ({"SLURM_STEP_RESV_PORTS": "1-65535,1-65535"}, "more ports than there are"),
        ({"SLURM_STEP_NUM_TASKS": "9" * 5000}, "expected a number in 0..65536"),
    ],
)
def test_slurms_variables_have_bounds(changes: dict[str, str], message: str) -> None:
    with soon(), raises(message):
        slurm.parse(environments.SRUN | changes)


def test_a_large_cluster_is_read_soon() -> None:
    tasks = {
        "SLURM_STEP_NUM_TASKS": "65536",
        "SLURM_STEP_TASKS_PER_NODE": "8(x8192)",
        "SLURM_STEP_NODELIST": "n[0001-8192]",
        "SLURM_PROCID": "65535",
        "SLURM_NODEID": "8191",
        "SLURM_LOCALID": "7",
    }
    with soon(10.0):
        cluster = slurm.parse(environments.SRUN | tasks)
        assert cluster is not None
        assert (cluster.local_rank, cluster.local_size, cluster.host) == (7, 8, "n8192")


# What the grammars are made of, so that the fuzzing comes further than the first character.
PIECES = (
    *("n", "0", "1", "9", "-", ",", "[", "]", "(", ")", "x", ":", ".", "%", '"', "{", "}", " "),
    *("node", "host", "a.b", "127.0.0.1", "::1", "65535", "99999999", "0x", "٣", "\n", "\udcff"),
    *('"worker"', '"cluster"', '"task"', '"type"', '"index"', "null", "NaN", "1e999", "é", "\\"),
)
KINDS = ("worker", "chief", "master", "ps", "evaluator", "tpu", "")
ADDRESSES = ("a:1", "A:1", "a:01", "b:2", "[::1]:1", "c")


class Fuzz:
    """Draws what looks like input; alike in each run."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def text(self) -> str:
        if self.random.random() < 0.2:
            points = self.random.choices(range(0x3000), k=self.random.randrange(20))
            return "".join(map(chr, points))
        return "".join(self.random.choices(PIECES, k=self.random.randrange(16)))

    def value(self, depth: int = 3) -> object:
        kinds: list[Callable[[], object]] = [
            self.text,
            lambda: self.random.choice([None, True, 0, 1, -1, 10**30, 0.5, float("nan")]),
            lambda: self.random.choice([*ADDRESSES, *KINDS]),
        ]
        if depth:
            kinds += [
                lambda: [self.value(depth - 1) for _ in range(self.random.randrange(4))],
                lambda: {self.text(): self.value(depth - 1) for _ in range(2)},
            ]
        return self.random.choice(kinds)()

    def tf_config(self) -> str:
        addresses = self.random.choices(ADDRESSES, k=self.random.randrange(4))
        cluster = {
            kind: self.random.choice([addresses, [], self.value()])
            for kind in self.random.sample(KINDS, k=self.random.randrange(4))
        }
        index = self.random.choice([0, 0, 1, self.value()])
        task = {"type": self.random.choice(KINDS), "index": index}
        whole = {
            "cluster": self.random.choice([cluster, cluster, self.value()]),
            "task": self.random.choice([task, task, self.value()]),
        }
        return self.random.choice([json.dumps(whole), self.text()])


def _read_master(fuzz: Fuzz) -> object:
    names = ("TFDDL_MASTER", "MASTER_ADDR", "MASTER_PORT", "TFDDL_PORT")
    return read_master({name: fuzz.text() for name in names if fuzz.random.random() < 0.6})


PARSERS: dict[str, Callable[[Fuzz], object]] = {
    "int": lambda fuzz: parse_int(fuzz.text(), what="N"),
    "json": lambda fuzz: parse_json(fuzz.text(), what="X"),
    "json in bytes": lambda fuzz: parse_json(fuzz.random.randbytes(20), what="X"),
    "tf_config": lambda fuzz: tf_config.parse(fuzz.tf_config()),
    "address": lambda fuzz: Cluster((fuzz.text(), fuzz.text()), 0),
    "host list": lambda fuzz: slurm.expand_hosts(fuzz.text()),
    "slots": lambda fuzz: mpi.parse(environments.OPEN_MPI_4 | {"TFDDL_HOSTS": fuzz.text()}),
    "hosts of sagemaker": lambda fuzz: detect(
        environments.SAGEMAKER | {"SM_HOSTS": json.dumps(fuzz.value())}
    ),
    "master": _read_master,
    "start timeout": lambda fuzz: read_start_timeout({"TFDDL_START_TIMEOUT": fuzz.text()}),
    "cores": lambda fuzz: read_cores({"TFDDL_CORES": fuzz.text()}),
}


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
def test_only_documented_errors(parse: Callable[[Fuzz], object]) -> None:
    fuzz = Fuzz(1)
    with soon(20.0):
        for _ in range(3000):
            check(parse, fuzz)


ENVIRONMENTS = {
    "srun": environments.SRUN,
    "torchrun": environments.TORCHRUN,
    "pytorchjob": environments.PYTORCHJOB,
    "trainer": environments.TRAINER,
    "open mpi": environments.OPEN_MPI_4,
    "pals": environments.PALS,
    "sagemaker": environments.SAGEMAKER,
}


@pytest.mark.parametrize("environ", ENVIRONMENTS.values(), ids=ENVIRONMENTS)
def test_only_documented_errors_of_an_environment(environ: dict[str, str]) -> None:
    """Some of its variables are something else."""

    def changed(fuzz: Fuzz) -> dict[str, str]:
        names = fuzz.random.sample(sorted(environ), k=fuzz.random.randrange(1, 4))
        return environ | {name: fuzz.text() for name in names}

    fuzz = Fuzz(2)
    for _ in range(1000):
        check(lambda fuzz: detect(changed(fuzz)), fuzz)
        check(lambda fuzz: detect_nodes(changed(fuzz)), fuzz)
        check(lambda fuzz: read_cores(changed(fuzz)), fuzz)
