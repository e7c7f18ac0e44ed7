"""`tfddl-bench`: what tfddl costs and gains on the machines at hand.

The command starts jobs by `tfddlrun`, one after the other. Within a job, all that is compared takes
turns in the same processes, and each measurement has its baseline there (plain Keras, a sum in
memory), so that whatever slows the machine for a while slows both. Workers report by JSON lines on
their stdout.

The command, without TensorFlow:

* `main`: flags; `config`: what they ask for; `workloads`: the models by name.
* `targets`: this machine, or hosts; `jobs`: runs a job there, and reads its reports.
* `experiment`: which jobs, in which order.
* `results`, `stats`, `codec`: what came out, and its JSON.
* `report`, `table`, `plots`, `tensorboard`: tables, pictures, events.
* `progress`: what is going on.

In a worker:

* `worker`: the process. `interleave`: takes times in turns.
* `collectives`, `training`, `inter_host`: what is measured in one long job.
* `startup`: a job that only starts. `reading`: memory of a worker that reads a large file.
* `models`, `devices`, `rss`, `machines`: what these need.
"""
