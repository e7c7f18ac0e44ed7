"""`python -m tfddl.launcher` is `tfddlrun`, where the console script is not on the path."""

from tfddl.launcher.main import run

run()
