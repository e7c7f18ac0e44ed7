"""``python -m tfddl.bench`` is `tfddl-bench`."""

from tfddl.bench.main import run

if __name__ == "__main__":
    run()
