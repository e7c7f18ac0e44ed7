"""Horovod's launcher, as scripts import it: `run`. On the command line it is `tfddlrun`."""

from tfddl._src.horovod.run_function import run as run

__all__ = ["run"]
