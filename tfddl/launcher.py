"""`python -m tfddl.launcher` is `tfddlrun`, where the console script is not on the path."""

from tfddl._src.launcher.main import run

if __name__ == "__main__":
    run()
