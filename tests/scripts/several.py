"""Runs several scripts of this folder, one after the other: TensorFlow is imported once.

Arguments: for each a script, and its own argument.
"""

import runpy
import sys
from pathlib import Path

scripts = sys.argv[1:]
for script, argument in zip(scripts[::2], scripts[1::2], strict=True):
    path = str(Path(__file__).parent / script)
    sys.argv = [path, argument]
    runpy.run_path(path, run_name="__main__")
