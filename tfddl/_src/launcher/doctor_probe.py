"""Probes one host for `tfddl-doctor`: facts about it, and which other hosts it reaches.

Runs in the agent. Nothing is judged here; `doctor_checks` does that.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import resource
import selectors
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfddl._src.cluster import ports
from tfddl._src.cpu import num_usable_cores
from tfddl._src.launcher import interfaces
from tfddl._src.launcher.worker_count import listed_gpus
from tfddl.errors import LaunchError

PACKAGES: Mapping[str, tuple[str, ...]] = {
    "tfddl": ("tfddl",),
    "TensorFlow": ("tensorflow", "tensorflow-cpu", "tensorflow-rocm", "tensorflow-cpu-aws"),
    "Keras": ("keras",),
    "NumPy": ("numpy",),
    "NCCL": ("nvidia-nccl-cu12", "nvidia-nccl-cu13"),
}
"""What is looked up, by the names of the distributions that bring it."""

_DRIVER = Path("/proc/driver/nvidia/version")
_DRIVER_VERSION = re.compile(r"\b(\d+\.\d+(\.\d+)?)\b")
_DEVICES = Path("/dev")
_INSTANCES = Path("/proc/driver/nvidia/capabilities")
_SMI_S = 10.0
_SHARED_MEMORY = Path("/dev/shm")
_CONNECT_S = 3.0
_TRANSFER_S = 10.0
_ROUND_TRIPS = 20
_PIECE = bytes(1 << 20)


def facts(directory: Path) -> dict[str, Any]:
    """What is known of this host without loading TensorFlow.

    Args:
        directory: where workers would run.
    """
    name = socket.gethostname()
    gpus, instances = count_gpus()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "time": time.time(),
        "hostname": name,
        "own_addresses": interfaces.resolve_texts(name),
        "identity": interfaces.identity(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {what: _version(names) for what, names in PACKAGES.items()},
        "cores": num_usable_cores(),
        "open_files": {"soft": soft, "hard": hard},
        "shared_memory": _free_bytes(_SHARED_MEMORY),
        "disk": {
            str(folder): _free_bytes(folder) for folder in (directory, Path(tempfile.gettempdir()))
        },
        "gpus": gpus,
        "mig_instances": instances,
        "driver": _driver_version(),
    }


class DoctorProbe:
    """Answers the doctor's questions, and serves the probes of other hosts.

    A connection to one of the ports that are listened on gets a dot for each end of a line that
    it sends, whatever is on the line.
    """

    def __init__(self, selector: selectors.BaseSelector) -> None:
        """Listens on nothing yet.

        Args:
            selector: sockets are registered there, with a function to call as data.
        """
        self._selector = selector

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Answers a question; what can't be found out is an "error"."""
        try:
            return self._answer(message)
        except LaunchError as error:
            return {"error": str(error)}

    def _answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        question = message["question"]
        if question == "facts":
            return facts(Path(message["directory"]))
        if question == "listen":
            return {"ports": self._listen(message["count"])}
        if question == "address":
            return {"address": interfaces.interface_of(message["interfaces"])[1]}
        if question == "resolve":
            return {
                "resolved": {n: list(map(str, interfaces.resolve(n))) for n in message["names"]}
            }
        if question == "reach":
            return reach(message["host"], message["ports"])
        assert question == "speed", question
        return measure_speed(message["host"], message["port"], num_pieces=message["num_pieces"])

    def _listen(self, count: int) -> list[int]:
        chosen = ports.free_ports(count)
        for port in chosen:
            listener = ports.listen_everywhere(port)
            listener.setblocking(False)
            accept = functools.partial(self._accept, listener)
            self._selector.register(listener, selectors.EVENT_READ, accept)
        return list(chosen)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the peer has gone again
            peer, _ = listener.accept()
            peer.setblocking(False)
            serve = functools.partial(self._serve, peer)
            self._selector.register(peer, selectors.EVENT_READ, serve)

    def _serve(self, peer: socket.socket) -> None:
        try:
            data = peer.recv(1 << 20)
            peer.sendall(b"." * data.count(b"\n"))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(peer)
            peer.close()


def reach(host: str, numbers: list[int]) -> dict[str, Any]:
    """Tries to connect to some ports of a host, all at once.

    Returns:
        `errors`: by port (as text), why it can't be reached; `latency_s`: the shortest round trip
        to one that can be, or None.
    """
    errors: dict[str, str] = {}
    connected: list[socket.socket] = []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for port in numbers:
            try:
                (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
                sock.setblocking(False)
                # EINPROGRESS: once the socket is writable, SO_ERROR says what has come of it
                # (connect(2)).
                sock.connect_ex(address)
                selector.register(sock, selectors.EVENT_WRITE, port)
            except OSError as error:
                errors[str(port)] = error.strerror or str(error)
        deadline = time.monotonic() + _CONNECT_S
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                assert isinstance(key.fileobj, socket.socket)
                selector.unregister(key.fileobj)
                number = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if number:
                    errors[str(key.data)] = os.strerror(number)
                else:
                    connected.append(key.fileobj)
        for key in selector.get_map().values():
            errors[str(key.data)] = f"no answer within {_CONNECT_S:g} s"
        latency_s = _latency(connected[0]) if connected else None
    return {"errors": errors, "latency_s": latency_s}


def measure_speed(host: str, port: int, *, num_pieces: int) -> dict[str, Any]:
    """Sends so many MiB to a host, over one connection.

    Returns:
        `bytes_per_s`, or `error`.
    """
    try:
        with socket.create_connection((host, port), timeout=_TRANSFER_S) as sock:
            begin = time.monotonic()
            for _ in range(num_pieces):
                sock.sendall(_PIECE)
                if time.monotonic() - begin > _TRANSFER_S:
                    return {"error": f"{num_pieces} MiB took more than {_TRANSFER_S:g} s"}
            sock.sendall(b"\n")
            sock.recv(1)
            return {"bytes_per_s": num_pieces * len(_PIECE) / (time.monotonic() - begin)}
    except OSError as error:
        return {"error": error.strerror or str(error)}


def _latency(sock: socket.socket) -> float | None:
    sock.settimeout(_CONNECT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    best = None
    for _ in range(_ROUND_TRIPS):
        begin = time.monotonic()
        try:
            sock.sendall(b"\n")
            if not sock.recv(1):
                return best
        except OSError:
            return best
        took = time.monotonic() - begin
        # The shortest, which has waited for nothing but the network.
        best = took if best is None else min(best, took)
    return best


def count_gpus(
    devices: Path = _DEVICES, instances: Path = _INSTANCES, smi: str = "nvidia-smi"
) -> tuple[int, int]:
    """How many GPUs workers can use, and how many of these are MIG instances.

    A GPU that is divided up (MIG) counts as its instances. What ``nvidia-smi -L`` says comes
    first: in a container it knows what the container may use. Otherwise the driver's files tell.

    Args:
        devices: where ``nvidia0`` and so on are.
        instances: where the driver lists what can be allowed: ``gpu0/mig/gi1/ci0/access``.
        smi: the command.
    """
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=_SMI_S)
        if done.returncode == 0:
            gpus = listed_gpus(done.stdout)
            return len(gpus), sum(gpus)
    numbers = [p.name.removeprefix("nvidia") for p in devices.glob("nvidia[0-9]*")]
    parts = [len(list(instances.glob(f"gpu{n}/mig/gi*/ci*"))) for n in numbers]
    return sum(count or 1 for count in parts), sum(parts)


def installed_version(what: str) -> str | None:
    """The version of one of `PACKAGES`; None where it isn't there."""
    return _version(PACKAGES[what])


def _version(names: tuple[str, ...]) -> str | None:
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return None


def _free_bytes(folder: Path) -> int | None:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _driver_version() -> str | None:
    try:
        match = _DRIVER_VERSION.search(_DRIVER.read_text())
    except OSError:
        return None
    return match[1] if match else None
