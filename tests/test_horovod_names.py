"""Horovod's names: the modules, the signatures and defaults of Horovod 0.28.1, `import horovod`."""

import importlib
import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.group import ROOT
from tfddl._src.cluster import Cluster
from tfddl._src.launcher import horovod_environment as launched
from tfddl.errors import UnsupportedError

DEVICES = "device_dense='', device_sparse=''"
COMPRESSION = "compression=none"
SET = "process_set=all"
FACTORS = "prescale_factor=1.0, postscale_factor=1.0"
TAPE = (
    f"gradtape, {DEVICES}, {COMPRESSION}, sparse_as_dense=False, op=average, "
    f"gradient_predivide_factor=1.0, num_groups=0, groups=None, {SET}"
)
KERAS_OPTIMIZER = (
    f"optimizer, name=None, {DEVICES}, {COMPRESSION}, sparse_as_dense=False, "
    "gradient_predivide_factor=1.0, op=average, num_groups=0, groups=None, "
    f"backward_passes_per_step=1, average_aggregated_gradients=False, {SET}"
)

WITHOUT_ARGUMENTS = """
    shutdown is_initialized is_homogeneous stop_timeline
    size local_size cross_size rank local_rank cross_rank
    mpi_threads_supported mpi_enabled mpi_built gloo_enabled gloo_built
    nccl_built ddl_built ccl_built cuda_built rocm_built
"""
BOTH = {
    **dict.fromkeys(WITHOUT_ARGUMENTS.split(), ""),
    "init": "comm=None, process_sets=None",
    "start_timeline": "file_path, mark_cycles=False",
    "barrier": SET,
    "broadcast_variables": f"variables, root_rank, {SET}, inplace=False",
    "broadcast_object": f"obj, root_rank=0, session=None, name=None, {SET}",
    "allgather_object": f"obj, session=None, name=None, {SET}",
    "broadcast_global_variables": "root_rank",
    "add_process_set": "process_set",
    "remove_process_set": "process_set",
}
TENSORFLOW = {
    **BOTH,
    "rank_op": "name=None",
    "local_rank_op": "name=None",
    "size_op": "process_set_id=0, name=None",
    "local_size_op": "name=None",
    "process_set_included_op": "process_set_id=0, name=None",
    "allreduce": f"tensor, average=None, {DEVICES}, {COMPRESSION}, op=None, {FACTORS}, name=None, "
    f"{SET}, ignore_name_scope=False",
    "grouped_allreduce": f"tensors, average=None, {DEVICES}, {COMPRESSION}, op=None, {FACTORS}, "
    f"{SET}, ignore_name_scope=False, name=None",
    "allgather": f"tensor, name=None, ignore_name_scope=False, {SET}",
    "grouped_allgather": f"tensors, name=None, ignore_name_scope=False, {SET}",
    "broadcast": f"tensor, root_rank, name=None, ignore_name_scope=False, {SET}",
    "broadcast_": f"variables, root_rank, name=None, {SET}",
    "alltoall": f"tensor, splits=None, name=None, ignore_name_scope=False, {SET}",
    "reducescatter": f"tensor, device_dense='', {COMPRESSION}, op=average, name=None, {SET}, "
    f"ignore_name_scope=False, {FACTORS}",
    "grouped_reducescatter": f"tensors, device_dense='', {COMPRESSION}, op=average, {SET}, "
    f"{FACTORS}, name=None",  # The name is ours.
    "join": "",
    "DistributedGradientTape": f"{TAPE}, scale_local_gradients=True",
    "PartialDistributedGradientTape": f"{TAPE}, local_layers=None, scale_local_gradients=True",
    "DistributedOptimizer": f"optimizer, name=None, use_locking=False, {DEVICES}, {COMPRESSION}, "
    "sparse_as_dense=False, backward_passes_per_step=1, op=average, "
    "gradient_predivide_factor=1.0, average_aggregated_gradients=False, num_groups=0, "
    f"groups=None, {SET}, scale_local_gradients=True",
    "SyncBatchNormalization": "fused=False, **kwargs",
    "BroadcastGlobalVariablesHook": "root_rank, device=''",
    "broadcast_object_fn": f"root_rank=0, session=None, name=None, {SET}",
    "split_list": "l, n",
}
KERAS = {
    **BOTH,
    "allreduce": f"value, name=None, average=None, {FACTORS}, op=None, {COMPRESSION}",
    "allgather": "value, name=None",
    "broadcast": "value, root_rank, name=None",
    "reducescatter": "value, name=None, op=average",
    "DistributedOptimizer": f"{KERAS_OPTIMIZER}, scale_local_gradients=True",
    "PartialDistributedOptimizer": f"{KERAS_OPTIMIZER}, local_layers=None, "
    "scale_local_gradients=True",
    "load_model": f"filepath, custom_optimizers=None, custom_objects=None, {COMPRESSION}, "
    "legacy_opts=False",
}
CALLBACKS = {
    "BroadcastGlobalVariablesCallback": "root_rank, device='', local_variables=None",
    "MetricAverageCallback": "device=''",
    "LearningRateScheduleCallback": "initial_lr, multiplier, start_epoch=0, end_epoch=None, "
    "staircase=True, momentum_correction=True, steps_per_epoch=None",
    "LearningRateWarmupCallback": "initial_lr, warmup_epochs=5, momentum_correction=True, "
    "steps_per_epoch=None, verbose=0",
    "BestModelCheckpoint": "monitor='val_loss', verbose=0, save_weights_only=False, mode='auto', "
    "save_freq='epoch'",
}
ELASTIC = {
    "run": "func",
    "KerasState": "model, optimizer=None, **kwargs",
    "CommitStateCallback": "state, batches_per_commit=1",
    "UpdateBatchStateCallback": "state",
    "UpdateEpochStateCallback": "state",
}
MODULES = {
    "tensorflow": TENSORFLOW,
    "keras": KERAS,
    "tensorflow.keras": KERAS,
    "keras.callbacks": CALLBACKS,
    "tensorflow.keras.callbacks": CALLBACKS,
    "keras.elastic": ELASTIC,
    "tensorflow.keras.elastic": ELASTIC,
    "tensorflow.elastic": {
        "run": "func",
        "TensorFlowKerasState": "model, optimizer=None, backend=None, **kwargs",
        "TensorFlowState": "variables=None, session=None, **kwargs",
    },
    "runner": {},
    "tensorflow.util": {"_executing_eagerly": ""},
    "tensorflow.functions": {
        name: TENSORFLOW[name]
        for name in (
            "allgather_object",
            "broadcast_object",
            "broadcast_object_fn",
            "broadcast_variables",
        )
    },
    "tensorflow.compression": {},
    "tensorflow.sync_batch_norm": {"SyncBatchNormalization": "fused=False, **kwargs"},
    "tensorflow.mpi_ops": {
        "_allreduce": f"tensor, name=None, op=sum, {FACTORS}, ignore_name_scope=False, {SET}",
        "_grouped_allreduce": f"tensors, name=None, op=sum, {FACTORS}, ignore_name_scope=False, "
        f"{SET}",
        "_reducescatter": f"tensor, name=None, op=sum, ignore_name_scope=False, {SET}, {FACTORS}",
        "_executing_eagerly": "",
    },
    "common.util": {
        "check_extension": "ext_name, ext_env_var, pkg_path, *args",
        "check_installed_version": "name, version, exception=None",
        "env": "**kwargs",
        "extension_available": "ext_base_name, verbose=False",
        "gpu_available": "ext_base_name, verbose=False",
        "is_iterable": "x",
        "is_version_greater_equal_than": "ver, target",
        "num_rank_is_power_2": "num_rank",
        "split_list": "l, n",
        **dict.fromkeys(
            ("mpi_built", "gloo_built", "nccl_built", "ddl_built", "ccl_built"), "verbose=False"
        ),
    },
    "common.process_sets": {"add_process_set": "process_set", "remove_process_set": "process_set"},
    "runner.util.threads": {
        "execute_function_multithreaded": "fn, args_list, block_until_all_done=True, "
        "max_concurrent_executions=1000",
        "in_thread": "target, args=(), name=None, daemon=True, silent=False",
        "on_event": "event, func, args=(), stop=None, check_stop_interval_s=1.0, daemon=True, "
        "silent=False",
    },
    "runner.common.util.env": {"get_env_rank_and_size": ""},
    "runner.launch": {"run_commandline": ""},
    "common.exceptions": {"HostsUpdatedInterrupt": "skip_sync=False"},
}
_SETS = {"ProcessSet", "global_process_set"}
WITHOUT_SIGNATURE = {
    **dict.fromkeys(
        ("tensorflow", "keras", "tensorflow.keras"),
        {"Adasum", "Average", "Sum", "Min", "Max", "Product", "Compression", *_SETS},
    ),
    "tensorflow.compression": {"Compression"},
    "common.process_sets": _SETS,
    "runner": {"run"},
    "runner.launch": {"gloo_built", "mpi_built"},
    "common.exceptions": {"HorovodInternalError"},
}
"""Names besides those of `MODULES`: constants, and what other tests compare."""


def _module(name: str) -> Any:
    return importlib.import_module(f"tfddl.horovod.{name}")


def _default(value: Any) -> str:
    hvd = _module("tensorflow")
    if value is hvd.global_process_set:
        return "all"
    if value is hvd.Compression.none:
        return "none"
    return str(value) if value in (hvd.Average, hvd.Sum) else repr(value)


def _signature(function: Any) -> str:
    texts = []
    for parameter in inspect.signature(function).parameters.values():
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        stars = "*" if parameter.kind is parameter.VAR_POSITIONAL else stars
        has_default = parameter.default is not parameter.empty
        default = f"={_default(parameter.default)}" if has_default else ""
        texts.append(f"{stars}{parameter.name}{default}")
    return ", ".join(texts)


@pytest.mark.parametrize("name", MODULES)
def test_signatures_and_defaults_are_horovod_s(name: str) -> None:
    module = _module(name)
    found = {known: _signature(getattr(module, known)) for known in MODULES[name]}
    assert found == MODULES[name]


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_horovod_s_names_only(name: str) -> None:
    module = _module(name)
    public = {n for n in dir(module) if not n.startswith("_") or n in MODULES[name]}
    found = {n for n in public if not inspect.ismodule(getattr(module, n))}
    assert found == set(MODULES[name]) | WITHOUT_SIGNATURE.get(name, set())


def test_one_home() -> None:
    for name in KERAS:
        assert getattr(_module("keras"), name) is getattr(_module("tensorflow.keras"), name)
    for part, known in (("callbacks", CALLBACKS), ("elastic", ELASTIC)):
        for name in known:
            theirs = getattr(_module(f"tensorflow.keras.{part}"), name)
            assert getattr(_module(f"keras.{part}"), name) is theirs
    assert _module("runner").run is importlib.import_module("tfddl.horovod").run


def test_submodules_are_there_as_attributes_and_by_import() -> None:
    hvd = _module("tensorflow")
    assert hvd.mpi_ops.Sum is hvd.Sum
    assert hvd.mpi_ops.allgather is hvd.allgather
    assert hvd.compression.Compression is hvd.Compression
    assert (
        hvd.keras.callbacks.MetricAverageCallback
        is _module("keras.callbacks").MetricAverageCallback
    )
    assert _module("_keras").callbacks is _module("keras.callbacks")
    assert _module("version").__version__ == "0.28.1"
    assert _module("common.elastic").ObjectState is _module("common.elastic").State
    basics = _module("common.basics").HorovodBasics(__file__, "mpi_lib")
    with pytest.raises(ValueError, match="has not been initialized"):
        basics.rank()
    with pytest.raises(UnsupportedError, match="backward_passes_per_step=N"):
        hvd.gradient_aggregation.LocalGradientAggregationHelper(2)
    with pytest.raises(AttributeError, match="nonsense"):
        hvd.mpi_ops.nonsense  # noqa: B018


def test_horovod_run_is_a_function_and_a_module() -> None:
    package: Any = importlib.import_module("tfddl.horovod")
    module = importlib.import_module("tfddl.horovod.run")
    assert package.run is module
    assert callable(module)
    with pytest.raises(UnsupportedError, match="use_mpi=True"):
        module(print, num_proc=2, use_mpi=True)


def test_helpers_of_horovod_s_utilities(monkeypatch: pytest.MonkeyPatch) -> None:
    util = _module("common.util")
    assert util.split_list([1, 2, 3, 4, 5], 3) == [[1, 2], [3, 4], [5]]
    assert [n for n in range(9) if util.num_rank_is_power_2(n)] == [1, 2, 4, 8]
    assert (util.is_iterable("x"), util.is_iterable(1)) == (True, False)
    at_least = util.is_version_greater_equal_than
    assert (at_least("2.16.1", "2.16.1"), at_least("2.9.0", "2.10.0")) == (True, False)
    assert (at_least("2.16.0-rc1", "2.16.0"), at_least("3.0.dev1", "2.16.0")) == (False, True)
    for versions in ((2.1, "2.0.0"), ("2.1", "2.0")):
        with pytest.raises(ValueError, match="must be"):
            at_least(*versions)
    monkeypatch.setenv("HOROVOD_RANK", "1")
    find = _module("runner.common.util.env").get_env_rank_and_size
    with pytest.raises(RuntimeError, match="HOROVOD_RANK is 1, and HOROVOD_SIZE is None"):
        find()
    with util.env(HOROVOD_SIZE="3", OTHER=None):
        assert find() == (1, 3)
    assert "HOROVOD_SIZE" not in os.environ


def test_helpers_of_horovod_s_threads() -> None:
    threads = _module("runner.util.threads")
    assert threads.execute_function_multithreaded(pow, [(2, 3), (3, 2)]) == {0: 8, 1: 9}
    with pytest.raises(ZeroDivisionError):
        threads.execute_function_multithreaded(divmod, [(1, 0)])
    event, stop = threading.Event(), threading.Event()
    done: list[int] = []
    threads.in_thread(done.append, (1,)).join(timeout=30)
    threads.in_thread(divmod, (1, 0), silent=True).join(timeout=30)
    waiting = threads.on_event(event, done.append, (2,), stop=stop, check_stop_interval_s=0.01)
    event.set()
    waiting.join(timeout=30)
    stopped = threads.on_event(threading.Event(), done.append, (3,), stop=stop)
    stop.set()
    stopped.join(timeout=30)
    assert done == [1, 2]
    assert not stopped.is_alive()
    with pytest.raises(ValueError, match="must be a tuple"):
        threads.in_thread(print, [1])


def test_horovod_run_s_arguments_are_horovod_s() -> None:
    names = """min_num_proc max_num_proc slots reset_limit cooldown_range hosts hostfile
        host_discovery_script start_timeout ssh_port ssh_identity_file disable_cache
        output_filename verbose use_gloo use_mpi mpi_args network_interface network_interfaces
        executable np min_np max_np""".split()
    expected = ["func", "args=()", "kwargs=None", "num_proc=1", *(f"{n}=None" for n in names)]
    assert _signature(_module("runner").run) == ", ".join(expected)


def test_the_tape_s_methods_are_horovod_s() -> None:
    tape = importlib.import_module("tfddl._src.horovod.optimizers").Tape
    rest = "self, target, sources, output_gradients=None, use_generic_names=False"
    assert _signature(tape.get_local_and_global_gradients) == rest
    assert _signature(tape.gradient) == f"{rest}, count=None"  # The count is ours.
    assert _signature(tape.register_local_source) == "self, source"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda h: h.broadcast_global_variables(0), "HINT: hvd.broadcast_variables"),
        (lambda h: h.init(comm=[0, 1]), "needs MPI"),
        (lambda h: h.init(process_sets=[3]), "must be a list of hvd.ProcessSet"),
        (lambda h: h.allreduce(1.0, average=True, op=h.Sum), "op and average are both given"),
        (lambda h: h.allreduce(1.0, op="nonsense"), "op is 'nonsense'"),
        (lambda h: h.allreduce(1.0, compression=object), "a class with static methods compress"),
        (lambda h: h.allreduce(1.0, process_set=[0]), "must be a hvd.ProcessSet"),
        (lambda h: h.TensorFlowState(), "has no attribute"),
        (lambda h: h.elastic.TensorFlowState(), "needs variables"),
        (lambda h: h.DistributedGradientTape(3), "must be a tf.GradientTape"),
    ],
)
def test_what_is_not_supported_says_what_to_use(call: Any, message: str) -> None:
    with pytest.raises((UnsupportedError, AttributeError), match=message):
        call(_module("tensorflow"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_mpi": True}, "run\\(…, use_mpi=True\\) isn't supported"),
        ({"max_np": 4}, "max_num_proc=4\\) isn't supported: .* their number is fixed"),
        ({"slots": 2}, "HINT: num_proc, hosts, min_num_proc and reset_limit are"),
    ],
)
def test_run_refuses_what_it_cannot_do(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        _module("runner").run(print, num_proc=2, **options)


def _python(code: str, **environment: str) -> str:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


def test_import_horovod_finds_the_same_modules() -> None:
    printed = _python("""
import tfddl.horovod
tfddl.horovod.install(); tfddl.horovod.install()
import horovod, sys
assert "tensorflow" not in sys.modules
from horovod.tensorflow.keras.callbacks import MetricAverageCallback
import horovod.tensorflow.keras as hvd
import horovod.keras.elastic, horovod.runner, horovod.tensorflow.util
import tfddl.horovod.tensorflow.keras as ours
assert hvd is ours and horovod is tfddl.horovod and horovod.run is horovod.runner.run
assert hvd.__spec__.name == "tfddl.horovod.tensorflow.keras"
assert hvd.callbacks.MetricAverageCallback is MetricAverageCallback
import keras
assert not hasattr(keras.optimizers.SGD(), "lr")  # Nobody asked for Keras 2.
try:
    import horovod.torch
except ModuleNotFoundError as error:
    print(horovod.__version__, error)
""")
    assert "0.28.1 No module named 'horovod.torch'. HINT: `import horovod` is tfddl's" in printed


def test_a_module_of_tfddl_may_be_the_first_that_loads_tensorflow() -> None:
    variables = launched.variables(Cluster(("a:1",), 0), {"PYTHONPATH": str(ROOT)})
    printed = _python(
        "import horovod.common.process_sets; print('imported')", PYTHONPATH=variables["PYTHONPATH"]
    )
    assert "imported" in printed.splitlines(), printed


def test_the_real_horovod_is_refused() -> None:
    printed = _python("""
import sys, types
sys.modules["horovod"] = types.ModuleType("horovod")
import tfddl.horovod
tfddl.horovod.install()
""")
    assert "StartError: The real Horovod (None) has been imported before" in printed


def test_launched_scripts_find_it(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('the hidden one')\n")
    cluster = Cluster(("a:1", "a:2", "b:1"), 1)
    variables = launched.variables(cluster, {"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert variables.pop("PYTHONPATH").split(":")[1:] == [str(tmp_path), str(ROOT)]
    assert variables == {
        "HOROVOD_HOSTNAME": "a",
        "HOROVOD_RANK": "1",
        "HOROVOD_SIZE": "3",
        "HOROVOD_LOCAL_RANK": "1",
        "HOROVOD_LOCAL_SIZE": "2",
        "HOROVOD_CROSS_RANK": "0",
        "HOROVOD_CROSS_SIZE": "1",
    }
    code = "import sys; print('tfddl' in sys.modules); import horovod; print(horovod.__name__)"
    found = launched.variables(cluster, {"PYTHONPATH": f"{tmp_path}:{ROOT}"})["PYTHONPATH"]
    printed = _python(code, PYTHONPATH=found)
    assert printed.splitlines() == ["the hidden one", "False", "tfddl.horovod"]
    # A Python that has no tfddl says so, and runs everything else.
    alone = found.replace(f":{ROOT}", "")
    printed = _python(f"{code}", PYTHONPATH=alone, PYTHONNOUSERSITE="1")
    assert "tfddl.horovod" in printed or "has no tfddl. HINT: install tfddl there" in printed
