"""Pods of a manifest on this machine, as far as processes can tell them from Kubernetes'.

Each has a network of its own, a host name, process ids that begin at 1, a root that it can't write
to, the volumes of its manifest, and the variables that its manifest and its engine set. Left out
are the image, whose programs are those of this machine, the user, limits, and Kubernetes itself. It
takes root.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import plain_yaml
from tests.namespaces import inside

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "launch/kubernetes"

# $1 is an empty folder, $2 the text of /etc/hosts, $3 the host name, and volumes follow up to "--".
_ENTER = """
set -e
root="$1" hosts="$2" name="$3"; shift 3
mount -t tmpfs tmpfs "$root"
for entry in /*; do
  if [ -L "$entry" ]; then cp -P "$entry" "$root"
  elif [ "$entry" = /etc ]; then cp -a /etc "$root"
  elif [ -d "$entry" ]; then mkdir "$root$entry"; mount --rbind "$entry" "$root$entry"
  fi
done
mount -t proc proc "$root/proc"
printf '%s' "$hosts" >"$root/etc/hosts"
# The image's user, with the rights of this one, who can read the programs.
echo "worker:x:$(id -u):$(id -g)::/tmp:/bin/sh" >>"$root/etc/passwd"
hostname "$name"
while [ "$1" != -- ]; do
  mkdir -p "$root$1"; mount --bind "$2" "$root$1"
  [ "$3" = rw ] || mount -o remount,bind,ro "$root$1"
  shift 3
done
shift
mount -o remount,ro "$root"
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Pod:
    """A pod, and where it runs.

    Attributes:
        name: its host name.
        namespace: the network namespace that is its network.
        spec: of the pod, as its manifest has it.
        engine: the variables that its engine adds.
        mounts: folders that its engine mounts, read-only, by their paths in the pod.
        command: what its container runs; that of the manifest, where not given.
    """

    name: str
    namespace: str
    spec: Mapping[str, Any]
    engine: Mapping[str, str] = field(default_factory=dict)
    mounts: Mapping[str, Path] = field(default_factory=dict)
    command: tuple[str, ...] = ()

    @property
    def container(self) -> Mapping[str, Any]:
        """Its only container."""
        (container,) = self.spec["containers"]
        return container


def documents(name: str) -> dict[str, Any]:
    """The documents of a manifest in launch/kubernetes, by their kind."""
    found = plain_yaml.documents((FOLDER / f"{name}.yaml").read_text())
    return {document["kind"]: document for document in found}


@contextmanager
def running(
    pod: Pod, *, hosts: Mapping[str, str], volumes: Mapping[str, Path], folder: Path
) -> Iterator[subprocess.Popen[str]]:
    """The container of a pod; what it has started is killed at the end.

    Args:
        pod: which.
        hosts: the addresses of all pods, by the names under which their Services publish them.
        volumes: folders in place of its claims, by the volumes' names; others are empty at first.
        folder: where empty volumes and its root are made.

    Yields:
        The process; SIGTERM reaches it as it reaches process 1 of a pod.
    """
    words = [word for path, where in pod.mounts.items() for word in (path, str(where), "ro")]
    for mount in pod.container["volumeMounts"]:
        where = volumes.get(mount["name"])
        if mount["mountPath"] == "/tmp":
            continue  # The programs of this machine may be there; nothing else needs it empty.
        if where is None:
            where = folder / pod.name / mount["name"]
            where.mkdir(parents=True, exist_ok=True)
        words += [mount["mountPath"], str(where), "ro" if mount.get("readOnly") else "rw"]
    root = folder / f"root-{pod.name}"
    root.mkdir(exist_ok=True)
    own = f"{hosts[pod.name]} {pod.name}\n" if pod.name in hosts else ""
    table = "127.0.0.1 localhost\n" + own
    table += "".join(f"{address} {name}\n" for name, address in hosts.items())
    line = [
        *inside(pod.namespace),
        *("unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child=KILL"),
        *("sh", "-c", _ENTER, "sh", str(root), table, pod.name, *words, "--"),
        *(pod.command or _command(pod.container)),
    ]
    process = subprocess.Popen(
        line,
        env=_environment(pod),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def terminate(process: subprocess.Popen[str], number: int) -> None:
    """Sends a signal to the first process of a pod, as the kubelet does."""
    # unshare, whose child that is; `ip` and `sh` have replaced themselves by what they run.
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), number)


def _command(container: Mapping[str, Any]) -> Sequence[str]:
    return [*container.get("command", ()), *container.get("args", ())]


def _environment(pod: Pod) -> dict[str, str]:
    """Only what a container gets: of the image PATH, of this machine where tfddl is."""
    given = {
        # Kubernetes sets these in every pod.
        "HOSTNAME": pod.name,
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
        "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(ROOT),
    }
    for variable in pod.container.get("env", ()):
        # The only values that aren't in the manifest are those of the Secret.
        given[variable["name"]] = variable.get("value", "00" * 32)
    return given | dict(pod.engine)
