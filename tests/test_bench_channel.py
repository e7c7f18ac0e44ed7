"""Orders and answers of the benchmark as JSON: what was said arrives, and nothing else is taken."""

import contextlib
import json
import pickle
import random
import socket
import struct
import typing
from collections.abc import Iterator
from typing import Any

import pytest

from tfddl.bench.channel import Channel, MessageError, decode, encode
from tfddl.bench.load import Moment
from tfddl.bench.machines import Machine
from tfddl.bench.orders import (
    Answer,
    Call,
    Called,
    Done,
    End,
    Hello,
    Look,
    Mode,
    Operation,
    Order,
    Ran,
    Steps,
    Stop,
    Train,
    Trains,
)
from tfddl.bench.workloads import WORKLOADS

MESSAGES: list[Any] = [
    Train(WORKLOADS["mlp"]),
    Steps(7, with_clock=True),
    Stop(),
    Call(operation=Operation.ALLGATHER, mode=Mode.EAGER, num_bytes=4096, calls=3),
    Look(),
    End(),
    Hello(
        rank=1,
        pid=4711,
        label="memory and “TCP”",
        others=("ring", "tcp"),
        machine=Machine(identity="x", processor="a processor\n", cores=(0, 3)),
        import_s=0.1 + 0.2,
        init_s=1e-9,
        kept_bytes=2**40,
        versions={"tensorflow": "2.21.0"},
    ),
    Trains(first_step_s=1.0, gradient_bytes=0),
    Ran(step_s=(0.5, 2.0), counters={"reduced": 1}, kept_bytes=3),
    Called((1 / 3,), 5),
    Moment(machine="x", at_s=1.5, busy_s=2.5, ours_s=0.0),
    Done(),
]


def test_what_was_said_arrives() -> None:
    known = {*typing.get_args(Order), *typing.get_args(Answer)}
    assert {type(message) for message in MESSAGES} == known
    with _channels() as (one, other):
        for message in MESSAGES:
            one.send(message)
        assert other.poll(5)
        assert [other.recv() for _ in MESSAGES] == MESSAGES
        assert not other.poll(0)
        one.close()
        assert other.poll(5)
        with pytest.raises(EOFError):
            other.recv()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"kind": "Stop", "more": 1}',
        b'{"kind": "Popen", "args": "true"}',
        b'{"kind": ["Stop"]}',
        b'{"kind": "Steps"}',
        b'{"kind": "Steps", "number": "7"}',
        b'{"kind": "Steps", "number": true}',
        b'{"kind": "Steps", "number": 7.0}',
        b'{"kind": "Steps", "number": 7, "with_clock": 1}',
        b'{"kind": "Called", "call_s": 1.0, "number": 1}',
        b'{"kind": "Called", "call_s": [NaN], "number": 1}',
        b'{"kind": "Called", "call_s": ["1"], "number": 1}',
        b'{"kind": "Train", "workload": {"model": "unet"}}',
        b'{"kind": "Train", "workload": []}',
        b'{"kind": "Call", "operation": "no", "mode": "eager", "num_bytes": 1, "calls": 1}',
        b'{"kind": "Stop", "kind": "Stop"}',
        b"[" * 100_000,
        b'{"kind": "Steps", "number": ' + b"9" * 5000 + b"}",
        b"\xff\xfe",
        pickle.dumps(Stop()),
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(MessageError, match="no message"):
        decode(data)
    with _channels() as (one, other):
        one._socket.sendall(struct.pack("<I", len(data)) + data)
        with pytest.raises(MessageError, match="no message"):
            other.recv()


def test_whatever_comes_is_a_message_or_none() -> None:
    rng = random.Random(1)
    texts = [encode(message) for message in MESSAGES]
    for _ in range(3000):
        data = bytearray(rng.choice(texts))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(3)] = rng.choice(
                [bytes([rng.randrange(256)]), b'"', b"{", b"]", b"1e999", b"null", b"\\ud800"]
            )
        with contextlib.suppress(MessageError):
            decode(bytes(data))


def test_a_message_that_is_too_long_is_not_waited_for() -> None:
    with _channels() as (one, other):
        one._socket.sendall(b"\xff\xff\xff\xff")
        with pytest.raises(MessageError, match="a message of 4294967295 bytes; expected at most"):
            other.recv()


@pytest.mark.parametrize("number", [1, 3, 4, 10])
def test_an_end_amidst_a_message(number: int) -> None:
    data = encode(Stop())
    with _channels() as (one, other):
        one._socket.sendall((struct.pack("<I", len(data)) + data)[:number])
        one.close()
        with pytest.raises(EOFError):
            other.recv()


def test_numbers_that_json_does_not_know_are_not_sent() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(Called((float("nan"),), 1))
    assert json.loads(encode(Stop())) == {"kind": "Stop"}


@contextlib.contextmanager
def _channels() -> Iterator[tuple[Channel, Channel]]:
    one, other = socket.socketpair()
    with Channel(one) as first, Channel(other) as second:
        yield first, second
