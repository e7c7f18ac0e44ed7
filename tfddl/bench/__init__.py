"""Commands that measure tfddl on the machine at hand.

* `usage`: what a process keeps in memory.
* `reading`: a file of examples, and what it costs a worker to read its share.
* `table`: what was measured, as text.
* `jobs`: runs the workers that measure.
* `memory`: the command ``python -m tfddl.bench.memory``.
* `problems`: small training problems, and one process that trains on them, without tfddl.
* `proof`: workers that train on them, and how far they are from the one process.
* `exactness`: the command ``python -m tfddl.bench.exactness``.
"""
