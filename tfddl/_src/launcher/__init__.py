"""Starts the workers of a job, on this machine or many, and supervises them: `tfddlrun`.

Loads no TensorFlow, so that it starts at once.

Usage::

    import os

    from tfddl._src import launcher

    options = launcher.JobOptions(num_workers=2, command=("python", "train.py"))
    status = launcher.run_job(options, environment=os.environ)

How it works, from the outside in:

- `main` reads the flags, `job` starts the job, and starts it again where `recovery` says so.
- In elastic jobs, `elastic` is the recovery: `host_discovery` says which there are, and
  `elastic_policy` when the workers are asked to save, to be started again on others.
- `guard` makes two processes of tfddlrun: the outer one passes signals on, the inner one does the
  work. Whichever is killed, the other one finds and kills all that the workers have started.
- `supervisor` runs one start of a job. It knows workers only as `WorkerHandle`s: their last report,
  and the orders to them. It decides who has failed, who is stalled, and when all have to end.
- Every worker belongs to the `Agent` of its host, which starts it, reads its output and its
  progress page, notices its end, and decides nothing. Supervisor and agents exchange messages, by
  one `AgentClient` per host, all of them in a `Fleet`.
- The agent of this machine is an object in the supervisor's process (`local_client`): messages are
  calls. The agent of another host is a process there (`agent_server`): messages are `frames` on its
  standard input and output, through ssh or srun (`remote_client`; an `AgentStarter` says by which
  command line). Its silence means that the host is lost.
- On several nodes with a tfddlrun on each, `multi_node` makes one job of them before any
  worker starts; after that every tfddlrun supervises the workers of its own host.
- Output goes from the agent to a `LogSink`, which shows it on the `Console` and writes the log.
- Commits are kept in a `HostStore` by each agent; `commit_relay` carries the newest one from the
  hosts of one start to those of the next.
"""

from tfddl._src.launcher.job import run_job
from tfddl._src.launcher.job_options import JobOptions
from tfddl._src.launcher.plan import ProcessPlan, plan_processes

__all__ = [
    "JobOptions",
    "ProcessPlan",
    "plan_processes",
    "run_job",
]
