"""Starts the workers of a job, on this machine or many, and looks after them: `tfddlrun`.

Loads no TensorFlow, so that it starts at once.

Usage::

    import os

    from tfddl._src import launcher

    options = launcher.JobOptions(num_workers=2, command=("python", "train.py"))
    status = launcher.run_job(options, environment=os.environ)
"""

from tfddl._src.launcher.job import JobOptions, run_job
from tfddl._src.launcher.plan import ProcessPlan, plan_processes

__all__ = [
    "JobOptions",
    "ProcessPlan",
    "plan_processes",
    "run_job",
]
