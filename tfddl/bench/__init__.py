"""`tfddl-bench`: what tfddl costs and gains on the machines at hand.

The command starts jobs by `tfddlrun`, with its own flags. Within a job, all that is compared takes
turns in the same processes, beside a baseline (plain Keras, a sum in memory): whatever slows the
machine for a while slows both. Workers report by JSON lines; what comes out are rows of labels
and values.

* The command, without TensorFlow: `main`; `flags`, `config`: what it is asked for; `targets`,
  `jobs`, `experiment`: where, how and which jobs are run; `scaling`: groups of processes without
  TensorFlow, with `cost_model`; `results`, `report`, `plots`: rows, tables, pictures.
* In a worker: `worker`, `session`; `interleave`: takes times in turns; `collectives`, `training`
  with `models`, `inter_host`: what is measured in one long job; `startup`: a job that only starts;
  `reading`: memory of a worker that reads a large file; `machines`: cores and memory.
"""
