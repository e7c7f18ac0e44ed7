"""The agents of the other nodes of a Slurm allocation, started by srun. Pure.

Each is a step of its own, with one task. Slurm then knows of all processes of the job: it accounts
for them, sends them its signals, and ends them with the job. No sshd is needed.

References:
    srun(1), https://slurm.schedmd.com/srun.html
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tfddl._src.launcher.agent_starter import agent_argv
from tfddl.errors import LaunchError

# What an allocation may ask for its tasks, in variables that srun reads as options: here they are
# for workers, which the agent starts, not for the agent's step.
_OPTIONS = (
    *("SLURM_CPUS_PER_TASK", "SRUN_CPUS_PER_TASK", "SLURM_TRES_PER_TASK", "SLURM_GPUS_PER_TASK"),
    *("SLURM_NTASKS_PER_NODE", "SLURM_NTASKS_PER_GPU", "SLURM_NTASKS_PER_SOCKET"),
    *("SLURM_NTASKS_PER_CORE", "SLURM_THREADS_PER_CORE", "SLURM_HINT", "SLURM_EXACT"),
    *("SLURM_NTASKS_PER_TRES", "SLURM_CPUS_PER_GPU", "SLURM_MEM_PER_GPU", "SLURM_MEM_PER_CPU"),
    # Without these a step gets the GPUs that the job has on its node. (All but by --gpus-per-task.)
    *("SLURM_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS_PER_SOCKET"),
    *("SLURM_EXCLUSIVE", "SLURM_GPU_BIND", "SLURM_DISTRIBUTION"),
    # A rank in front of each line, or files instead of our pipes, would be no frames.
    *("SLURM_LABELIO", "SLURM_STDINMODE", "SLURM_STDOUTMODE", "SLURM_STDERRMODE"),
)
# The GPUs of a node, which Slurm numbers by what it has given the job there: another node's differ.
# What slurmd doesn't set, the agent has from us all the same (--export=ALL).
_DEVICES = frozenset(
    "CUDA_VISIBLE_DEVICES GPU_DEVICE_ORDINAL ROCR_VISIBLE_DEVICES HIP_VISIBLE_DEVICES "
    "ZE_AFFINITY_MASK".split()
)
_SETTINGS = (
    "--nodes=1",
    "--ntasks=1",
    # Beside steps that use the same CPUs and memory: those are the job's own.
    "--overlap",
    "--mem=0",
    "--cpu-bind=none",
    "--mpi=none",  # a worker is no process of MPI
    # --export=NONE of sbatch is not for us: tfddlrun sends what workers are to have.
    "--export=ALL",
    "--chdir=/",
    "--kill-on-bad-exit=1",
    # Otherwise slurmstepd sends only what ends in a newline. It takes a pseudo terminal for the
    # agent's output then, in a mode that changes no byte (no OPOST), and a pipe for its input.
    "--unbuffered",
)
# What Slurm says where a step of one node can't get its part, as of --gpus=8 for all nodes.
_GPUS = "Invalid generic resource (gres) specification"
# After it, only that a task has ended.
_TASK_ENDED = re.compile(r"srun: error: \S+: tasks? \S+ .*|srun: (launch/slurm|Terminating).*")


@dataclass(frozen=True)
class SrunOptions:
    """How the agents of other nodes are started, within an allocation.

    Attributes:
        remote_python: the Python that starts the agent on every node.
        gpus_per_node: what an agent's step asks for, as srun's flag has it; None for what the job
            has on its node.

    Raises:
        LaunchError: no Python.
    """

    remote_python: str = sys.executable
    gpus_per_node: str | None = None

    def __post_init__(self) -> None:
        if not self.remote_python:
            raise LaunchError(
                "--remote-python is empty. HINT: the path of a Python with tfddl on the nodes"
            )

    @property
    def host_variables(self) -> frozenset[str]:
        """See `AgentStarter`."""
        return _DEVICES

    @property
    def hint(self) -> str:
        """See `AgentStarter`."""
        return "env, of coreutils, has to be on the PATH"

    def argv(self, host: str) -> tuple[str, ...]:
        """The command line that starts the agent of another node."""
        without = [word for name in _OPTIONS for word in ("-u", name)]
        agent = agent_argv(self.remote_python)
        return ("env", *without, *self._step(host), *agent)

    def explain_end(self, host: str, *, returncode: int, stderr_lines: Sequence[str]) -> str:
        """Says why the agent of a node didn't start, or ended before it greeted."""
        lines = [line.strip() for line in stderr_lines if not _TASK_ENDED.fullmatch(line.strip())]
        said = lines[-1] if lines else "it said nothing"
        line = shlex.join([*self._step(host), self.remote_python, "-c", "import tfddl"])
        gpus = "; GPUs have to be asked for by --gpus-per-node" if _GPUS in said else ""
        return (
            f"srun can't start an agent on {host} (status {returncode}): {said}. HINT: this has to "
            f"work in the allocation: {line}{gpus}"
        )

    def _step(self, host: str) -> tuple[str, ...]:
        gpus = () if self.gpus_per_node is None else (f"--gpus-per-node={self.gpus_per_node}",)
        return ("srun", f"--nodelist={host}", *_SETTINGS, *gpus)
