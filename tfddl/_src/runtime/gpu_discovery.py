"""Which physical GPU a worker uses: asked of CUDA's driver, without TensorFlow.

TensorFlow tells the PCI id of a GPU only once it has made the device. The driver tells it before,
and obeys CUDA_VISIBLE_DEVICES; being asked, it makes no context and takes no GPU memory.
"""

import ctypes
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from tfddl._src.comm.process_group import Transport
from tfddl.errors import DisagreementError, StartError

# Of the driver, which every machine with a GPU has, also without a CUDA toolkit.
_DRIVER = "libcuda.so.1"
_SUCCESS = 0
_BUS_ID_BYTES = 32


def gpu_identity(index: int, *, load: Callable[[str], Any] = ctypes.CDLL) -> str | None:
    """What tells a GPU from the others of its machine.

    Args:
        index: Of the GPUs that this process sees.
        load: Loads a shared library.

    Returns:
        "0000:3b:00.0", the PCI bus id; of an instance of a GPU that is divided up (MIG) its UUID,
        "MIG-…"; None where the driver can't be asked, or doesn't know.

    References:
        "CUDA Driver API, Device Management", NVIDIA,
        https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__DEVICE.html
    """
    try:
        driver = load(_DRIVER)
        instance = _instance(driver, index)
        return instance or _bus_id(driver, index)
    except (OSError, AttributeError, _DriverError):
        return None


class _DriverError(Exception):
    """The driver has returned an error."""


def _ask(function: Any, *arguments: Any) -> None:
    if function(*arguments) != _SUCCESS:
        raise _DriverError


def _device(driver: Any, index: int) -> ctypes.c_int:
    # Any number of times, by anybody: later calls do nothing. It makes no context.
    _ask(driver.cuInit, 0)
    device = ctypes.c_int()
    _ask(driver.cuDeviceGet, ctypes.byref(device), index)
    return device


def _bus_id(driver: Any, index: int) -> str:
    text = ctypes.create_string_buffer(_BUS_ID_BYTES)
    _ask(driver.cuDeviceGetPCIBusId, text, _BUS_ID_BYTES, _device(driver, index))
    return text.value.decode().lower()


def _instance(driver: Any, index: int) -> str | None:
    """The UUID of a MIG instance: the newer function tells it, the older one the whole GPU's."""
    device = _device(driver, index)
    found = []
    for name in ("cuDeviceGetUuid", "cuDeviceGetUuid_v2"):
        if not hasattr(driver, name):  # Before CUDA 11.4.
            return None
        raw = (ctypes.c_ubyte * 16)()
        _ask(getattr(driver, name), ctypes.byref(raw), device)
        found.append(bytes(raw))
    whole, own = found
    return None if own == whole else f"MIG-{uuid.UUID(bytes=own)}"


def check_gpu_sharing(
    transport: Transport, gpus: Sequence[str | None], ranks_of_hosts: Sequence[Sequence[int]]
) -> None:
    """Makes sure that no two workers of a host use one GPU, where NCCL needs one for each.

    RING may share one: it only needs the memory for it.

    Args:
        transport: What all ranks use.
        gpus: `gpu_identity` of each rank's GPU; None where it isn't known, or there is none.
        ranks_of_hosts: The ranks of each host.

    Raises:
        StartError: Two do.
    """
    if transport is not Transport.NCCL:
        return
    for ranks in ranks_of_hosts:
        users: dict[str, int] = {}
        for rank in ranks:
            gpu = gpus[rank]
            if gpu is None:
                continue
            if gpu in users:
                raise StartError(
                    f"rank {users[gpu]} and rank {rank} use the same GPU of their host ({gpu}), "
                    "but NCCL needs one for each. HINT: start one worker per GPU; or let your "
                    "scheduler give each task its own (Slurm: --gpus-per-task=1); or share it, "
                    'more slowly, by tfddl.init(collective="ring").'
                )
            users[gpu] = rank


def compare_transports(resolved: Sequence[Transport], hosts: Sequence[str]) -> None:
    """Makes sure that all ranks have chosen the same transport: none has a GPU, or all have.

    To be asked before TensorFlow starts, which would wait for ever.

    Args:
        resolved: What each rank has chosen.
        hosts: The host of each rank.

    Raises:
        DisagreementError: They differ.
    """
    first = resolved[0]
    other = next((rank for rank, chosen in enumerate(resolved) if chosen is not first), None)
    if other is None:
        return
    found = {Transport.NCCL: "sees a GPU and would use NCCL", Transport.RING: "would use RING"}
    lacking = hosts[0] if first is Transport.RING else hosts[other]
    raise DisagreementError(
        f"rank 0 on {hosts[0]} {found[first]}, but rank {other} on {hosts[other]} "
        f"{found[resolved[other]]}; all ranks must use the same. HINT: if {lacking} has GPUs, see "
        "there what nvidia-smi and tfddl-doctor say, and CUDA_VISIBLE_DEVICES; to train without "
        'NCCL, give all ranks tfddl.init(collective="ring").'
    )
