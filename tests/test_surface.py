"""The public surface: what is exported, that it is documented, and that errors are a tree."""

import inspect

import pytest
import tensorflow as tf

import tfddl
from tfddl import errors

EXPORTED = [
    "Compression",
    "DistributedGradientTape",
    "DistributedOptimizer",
    "Order",
    "ProcessSet",
    "ReduceOp",
    "VirtualTrainStep",
    "allgather",
    "allgather_object",
    "allreduce",
    "alltoall",
    "barrier",
    "broadcast",
    "broadcast_object",
    "broadcast_variables",
    "callbacks",
    "cross_rank",
    "cross_size",
    "debug",
    "errors",
    "global_process_set",
    "grouped_allgather",
    "grouped_allreduce",
    "grouped_broadcast",
    "grouped_reducescatter",
    "init",
    "is_initialized",
    "join",
    "load_checkpoint",
    "local_rank",
    "local_size",
    "loss_count",
    "open_parquet",
    "open_tfrecords",
    "rank",
    "reducescatter",
    "run",
    "shard_dataset",
    "shard_range",
    "shutdown",
    "size",
    "start_timeline",
    "stop_timeline",
    "strategy",
    "sync_moving_statistics",
]


def test_the_surface_is_what_it_was() -> None:
    assert tfddl.__all__ == EXPORTED
    assert sorted(tfddl.__all__) == tfddl.__all__


@pytest.mark.parametrize("name", EXPORTED)
def test_everything_exported_is_there_and_documented(name: str) -> None:
    assert inspect.getdoc(getattr(tfddl, name))
    assert name in dir(tfddl)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tfddl' has no attribute 'nonsense'"):
        tfddl.nonsense  # type: ignore[attr-defined]  # noqa: B018


def test_errors_are_drawn_as_they_are() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if inspect.isclass(kind) and kind is not errors.TfddlError
    ]
    assert kinds
    for kind in kinds:
        builtin = kind.__bases__[1]
        assert issubclass(kind, errors.TfddlError)
        assert f"{kind.__name__} ({builtin.__name__})" in (errors.__doc__ or "")


@pytest.mark.parametrize(
    "kind", [errors.UnsupportedError, errors.UnimplementedError, errors.PeerLostError]
)
def test_errors_keep_their_class_where_they_leave_a_function(kind: type[Exception]) -> None:
    @tf.function
    def refused() -> None:
        raise kind("the reason")

    with pytest.raises(kind, match="the reason"):
        refused()
