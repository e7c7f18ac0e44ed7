"""Commands that measure tfddl on the machines at hand.

Memory:

* `usage`: what a process keeps in memory.
* `reading`: a file of examples, and what it costs a worker to read its share.
* `table`: what was measured, as text.
* `jobs`: runs the workers that measure.
* `memory`: the command ``python -m tfddl.bench.memory``.

Between hosts, in every worker of a job:

* `streams`: what one TCP stream carries. `turns`: takes times in turns.
* `crossing`: what is measured. `between`: the command ``python -m tfddl.bench.between``.

Speed, ``python -m tfddl.bench`` or ``tfddl-bench``. A *crew* is a job of workers that stay, and do
what they are told when it is their turn. Of the workers, with TensorFlow:

* `orders`: what they are told, and what they answer; `workloads`: what there is to train.
* `channel`: how that travels; `entrance`: where they come in for it, both ends; `line`: how they
  take orders.
* `models`, `calls`: what is timed; `pacer` holds a training between its steps; `devices`.
* `contestants`: the ways that are compared; `worker`: the process.

Of the command, without TensorFlow:

* `settings`, `progress`, `results`: what is asked for, is going on, and came out.
* `ground`: this machine, or hosts: where crews run, and what starts them there.
* `machines`: what that is; `load`: what others do on its cores.
* `spread`: what timings come to.
* `crew`, `field`: starts workers and gives orders; all that compete.
* `training`, `calling`, `starting`: the measurements, which `speed` makes one after the other.
* `report`, `charts`, `plots`, `board`: tables, pictures, TensorBoard.
* `main`: the door.
"""
