"""Which lines of TensorFlow's mean nothing, and that no other line is taken for one of them.

That they are those of the installed TensorFlow is shown by test_launcher_output.py.
"""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tfddl._src.startup_logs import has_gpu, without_startup_logs

# The first lines are TensorFlow 2.21's, the others those of 2.18 to 2.20 (tensorflow#62075,
# openxla/xla#20803).
NOISE = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1796078536.559359    1125 port.cc:153] oneDNN custom operations are on. You may "
    "see slightly different numerical results due to floating-point round-off errors",
    "I0000 00:00:1796078536.559740    1125 cudart_stub.cc:31] Could not find cuda drivers on "
    "your machine, GPU will not be used.",
    "To enable the following instructions: AVX2 AVX512F AVX512_VNNI FMA, in other operations, "
    "rebuild TensorFlow with the appropriate compiler flags.",
    "2025-07-02 09:22:30.972636: I tensorflow/core/util/port.cc:153] oneDNN operations are on.",
    "E0000 00:00:1751448150.986970   10148 cuda_dnn.cc:8579] Unable to register cuDNN factory: "
    "Attempting to register factory for plugin cuDNN when one has already been registered",
    "2025-07-02 09:22:30.972636: E external/local_xla/xla/stream_executor/cuda/cuda_fft.cc:467] "
    "Unable to register cuFFT factory: Attempting to register factory for plugin cuFFT when one "
    "has already been registered",
    "W0000 00:00:1751448151.003754   10148 computation_placer.cc:177] computation placer already "
    "registered. Please check linkage and avoid linking the same target more than once.",
]
NO_GPU = [
    "E0000 00:00:1796078543.121034    1125 cuda_platform.cc:52] failed call to cuInit: INTERNAL: "
    "CUDA error: Failed call to cuInit: UNKNOWN ERROR (303)",
    "2025-02-09 09:37:34.496341: E external/local_xla/xla/stream_executor/cuda/cuda_driver.cc:152] "
    "failed call to cuInit: INTERNAL: CUDA error: Failed call to cuInit: CUDA_ERROR_NO_DEVICE: no "
    "CUDA-capable device is detected",
]
MATTERS = [
    "",
    "mine",
    # A driver that doesn't fit, or that is broken: nobody calls this normal.
    "E0000 00:00:1796078543.121034    1125 cuda_platform.cc:52] failed call to cuInit: INTERNAL: "
    "CUDA error: Failed call to cuInit: CUDA_ERROR_UNKNOWN: unknown error",
    "E0000 00:00:1796078543.121034    1125 cuda_dnn.cc:8579] Could not create cudnn handle: "
    "CUDNN_STATUS_NOT_INITIALIZED",
    "W0000 00:00:1796078543.121034    1125 cpu_allocator_impl.cc:82] Allocation of 4000000000 "
    "exceeds 10% of free system memory.",
    "2025-07-02 09:22:30.972636: W tensorflow/core/framework/op_kernel.cc:1857] OP_REQUIRES failed",
    # Of a script that logs with absl's Python package, or quotes TensorFlow.
    "I1130 22:37:57.123456 140123456 train.py:52] epoch 1 is done",
    "WARNING: All log messages before absl::InitializeLog() is called are written to a file",
    "The log had: " + NO_GPU[0],
    "RuntimeError: failed call to cuInit: UNKNOWN ERROR (303)",
]


def test_only_what_means_nothing_is_left_out() -> None:
    lines = [*NOISE, *NO_GPU, *MATTERS]
    assert without_startup_logs(lines, has_gpu=False) == MATTERS
    assert without_startup_logs(lines, has_gpu=True) == [*NO_GPU, *MATTERS]


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, False),
        ({"dev/nvidia0": ""}, True),
        ({"dev/dxg": ""}, True),
        ({"proc/driver/nvidia/version": ""}, True),
        ({"sys/bus/pci/devices/1/vendor": "0x10de\n", ".../class": "0x030200\n"}, True),
        ({"sys/bus/pci/devices/1/vendor": "0x10de\n", ".../class": "0x040300\n"}, False),  # sound
        ({"sys/bus/pci/devices/1/vendor": "0x8086\n", ".../class": "0x030000\n"}, False),
        ({"sys/bus/pci/devices/1/vendor": "0x10de\n"}, False),  # unplugged meanwhile
        ({"sys/bus/pci/devices/1/config": ""}, False),
    ],
)
def test_a_gpu_is_found_with_a_driver_and_without(
    files: dict[str, str], found: bool, tmp_path: Path
) -> None:
    for name, text in files.items():
        path = tmp_path / name.replace("...", "sys/bus/pci/devices/1")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert has_gpu(tmp_path) == found


@pytest.mark.parametrize("error", [PermissionError, OSError(errno.ENODEV, "No such device")])
def test_what_cannot_be_read_is_no_gpu(
    error: OSError | type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    (tmp_path / "sys/bus/pci/devices/1").mkdir(parents=True)
    monkeypatch.setattr(Path, "read_text", fail)
    assert not has_gpu(tmp_path)


def _run(script: str) -> subprocess.CompletedProcess[str]:
    preamble = (
        "import os, signal, subprocess, sys\n"
        "from tfddl._src.startup_logs import filtered_stderr\n"
        f"noise = {NOISE[1]!r}\n"
        "def write(text):\n"
        "    os.write(2, text.encode())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", preamble + script],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def test_stderr_is_filtered_for_a_while() -> None:
    done = _run(
        "with filtered_stderr():\n"
        "    write(noise + '\\n' + 'C++\\n' + noise[:20])\n"
        "    write(noise[20:] + '\\n')\n"
        "    print('Python', file=sys.stderr)\n"
        "    write('unfinished')\n"
        "write('\\n' + noise)\n"
    )
    assert done.returncode == 0
    assert done.stderr == f"C++\nPython\nunfinished\n{NOISE[1]}"


def test_the_last_words_are_shown_however_it_ends() -> None:
    done = _run(
        "with filtered_stderr():\n"
        "    write(noise + '\\n' + 'F0000 the reason\\n')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert done.stderr == "F0000 the reason\n"  # communicate() waits until nobody can write more
    done = _run("with filtered_stderr():\n    write(noise + '\\n')\n    raise ValueError('no')\n")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ValueError: no\n")


def test_a_child_that_keeps_stderr_is_not_waited_for() -> None:
    done = _run(
        "from tfddl._src import startup_logs\n"
        "startup_logs._DRAIN_S = 0.1\n"
        "with filtered_stderr():\n"
        "    child = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=sys.stderr)\n"
        "print('goes on', file=sys.stderr)\n"
        "child.communicate(noise.encode() + b'\\nof the child\\n')\n"
    )
    assert done.stderr == "goes on\nof the child\n"


@pytest.mark.parametrize("closed", ["os.close(2)", "os.close(2)\nsys.stderr = None"])
def test_a_closed_stderr_stays_closed(closed: str) -> None:
    done = _run(
        f"{closed}\n"
        "with filtered_stderr():\n"
        "    print('goes on')\n"
        "try:\n"
        "    os.waitpid(-1, os.WNOHANG)\n"
        "except ChildProcessError:\n"
        "    print('alone')\n"
    )
    assert done.stdout == "goes on\nalone\n"
