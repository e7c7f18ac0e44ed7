"""What `tfddl-migrate` knows: which names are the same, and shapes of Horovod scripts. Pure."""

import ast
from collections.abc import Callable, Mapping
from types import MappingProxyType

_FACTORS = ("prescale_factor", "postscale_factor")
GRADIENTS = (1, ("compression", "op", "sparse_as_dense"))
SAME: Mapping[str, tuple[int, tuple[str, ...]]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "init shutdown is_initialized rank size local_rank local_size cross_rank "
                "cross_size stop_timeline"
            ).split(),
            (0, ()),
        ),
        "start_timeline": (1, ()),
        "barrier": (0, ("process_set",)),
        "allreduce": (1, ("op", "name", "process_set", *_FACTORS)),
        "grouped_allreduce": (1, ("op", "name", "process_set", *_FACTORS)),
        "reducescatter": (1, ("op", "name", "process_set", *_FACTORS)),
        "allgather": (1, ("name", "process_set")),
        "broadcast": (2, ("root_rank", "name", "process_set")),
        "broadcast_variables": (2, ("root_rank", "process_set")),
        "broadcast_object": (2, ("root_rank", "name", "process_set")),
        "allgather_object": (1, ("name", "process_set")),
        "alltoall": (2, ("splits", "name", "process_set")),
        "ProcessSet": (1, ()),
        "DistributedOptimizer": GRADIENTS,
        "DistributedGradientTape": GRADIENTS,
    }
)
"""Functions of the same name in tfddl: the positional and named arguments that are the same."""

WITHOUT_EFFECT = ("name", "device_dense", "device_sparse", "use_locking", "ignore_name_scope")
"""Arguments of the optimizer and the tape that can be left out."""

CONSTANTS = MappingProxyType(
    {
        "Average": "ReduceOp.AVERAGE",
        "Sum": "ReduceOp.SUM",
        "Min": "ReduceOp.MIN",
        "Max": "ReduceOp.MAX",
        "Product": "ReduceOp.PRODUCT",
        "Compression.none": "Compression.NONE",
        "Compression.fp16": "Compression.FP16",
        "global_process_set": "global_process_set",
    }
)
NUMPY = ("allreduce", "allgather", "reducescatter")
"""Collectives of `horovod.keras` that return NumPy's arrays."""

NOT_NEEDED = ("BroadcastGlobalVariablesCallback", "MetricAverageCallback")
SCHEDULES: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "LearningRateWarmupCallback": ("LearningRateWarmup", ("initial_lr",)),
        "LearningRateScheduleCallback": ("LearningRateSchedule", ("initial_lr", "multiplier")),
    }
)
"""Callbacks: their names in tfddl, and arguments that must be given, and may be positional."""

OPTIMIZERS = "Adadelta Adagrad Adam Adamax Ftrl Nadam RMSprop SGD".split()

HINTS = MappingProxyType(
    {
        "load_model": "keras.models.load_model, and wrap the optimizer again",
        "SyncBatchNormalization": "keras.layers.BatchNormalization(synchronized=True)",
        "elastic": "tfddl.callbacks.Checkpoint, with tfddlrun --max-restarts",
        "join": "tfddl.shard_dataset, by which all ranks have the same number of steps",
        "broadcast_global_variables": "tfddl.broadcast_variables(model.variables)",
        "PartialDistributedOptimizer": "no tfddl name: some layers stay each rank's own",
    }
)
"""What replaces names that stay Horovod's."""

ALL_RANKS = ("evaluate", "fit", "predict")


def arguments_of(node: ast.Call) -> list[ast.expr | ast.keyword]:
    return [*node.args, *node.keywords]


def droppable_arguments(node: ast.Call) -> tuple[str, ...]:
    """Arguments of the optimizer or the tape that can be left out."""
    passes = "backward_passes_per_step"
    is_one = any(
        keyword.arg == passes
        and isinstance(keyword.value, ast.Constant)
        and keyword.value.value == 1
        for keyword in node.keywords
    )
    return (*WITHOUT_EFFECT, passes, "average_aggregated_gradients") if is_one else WITHOUT_EFFECT


def fitted_arrays(node: ast.AST) -> list[str]:
    """The names of arrays that ``fit(x, y, batch_size=…)`` gets; none for anything else."""
    if not isinstance(node, ast.Call):
        return []
    is_fit = isinstance(node.func, ast.Attribute) and node.func.attr == "fit"
    names = [part.id for part in node.args if isinstance(part, ast.Name)]
    has_batch_size = any(keyword.arg == "batch_size" for keyword in node.keywords)
    return names if is_fit and has_batch_size and len(names) == len(node.args) in (1, 2) else []


def assignments_of(node: ast.Assign) -> list[tuple[ast.expr, ast.expr]]:
    target, value = node.targets[0], node.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=False))
    return [(target, value)]


def sliced_array(
    target: ast.expr, value: ast.expr, path: Callable[[ast.expr], tuple[str, str] | None]
) -> str | None:
    """The name of an array of which each rank takes every size-th row; None for anything else."""
    if not (
        isinstance(value, ast.Subscript)
        and isinstance(value.slice, ast.Slice)
        and isinstance(value.value, ast.Name)
        and isinstance(target, ast.Name)
        and target.id == value.value.id
        and value.slice.upper is None
    ):
        return None
    parts = (value.slice.lower, value.slice.step)
    calls = [path(part.func) if isinstance(part, ast.Call) else None for part in parts]
    names = [None if call is None else call[1] for call in calls]
    return target.id if names == ["rank", "size"] else None
