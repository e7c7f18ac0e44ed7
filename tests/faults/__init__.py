"""Fault injection: workers, launchers, disks and links fail, and trainings must lose nothing.

The command is ``python -m tests.faults``; `tests/test_faults.py` runs the same cases.

* `cases`: the faults.
* `training`: the training of a worker, which injects its own fault and records what it trained on.
* `audit`: which examples came into the weights how often, from these records.
* `injection`: one training under `tfddlrun`, from start to end, and its outcome.
* `sweep`: all cases one after the other, or kills at random moments.
"""
