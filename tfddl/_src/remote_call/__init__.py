"""Functions that are called on workers: `tfddl.run`, and what engines need of it.

- `pickling`: functions, results and exceptions as bytes; says which part of them can't be pickled.
- `task`: what a worker does: it loads the call, makes it, and writes what came of it.
- `launch`: the process between the caller and the workers, a `tfddlrun` for functions.
- `call_end`: what came of it: results, or the first failure.
- `output`: what the workers write, shown by the caller.
- `run`: what callers call.

No TensorFlow is loaded in the caller: what the function imports, only workers import.
"""
