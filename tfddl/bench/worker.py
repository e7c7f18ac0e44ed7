"""A worker of a job of `tfddl-bench`: ``python -m tfddl.bench.worker TASK``."""

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tfddl._src.cluster import Cluster, detect
from tfddl.bench.codec import from_json
from tfddl.bench.config import Config, InitOptions, Part, Style
from tfddl.bench.jobs import Kind, Report, Task
from tfddl.bench.progress import Progress
from tfddl.bench.results import Results

_END_S = 600.0


def main() -> None:
    """Does its task, and reports."""
    task = from_json(Task, sys.argv[1])
    cluster = detect(os.environ)
    assert isinstance(cluster, Cluster)  # tfddlrun has set TF_CONFIG.
    began_s = time.perf_counter()
    import keras  # noqa: F401
    import tensorflow  # noqa: F401  # What is timed is that it loads.

    import_s = time.perf_counter() - began_s
    if task.kind is Kind.START:
        from tfddl.bench import startup

        startup.run(task, cluster, import_s=import_s)
    else:
        report = _measured(task)
        if cluster.rank == 0:
            report.write()
    Report(is_done=True).write()
    os._exit(0)  # TensorFlow takes seconds to free what the kernel frees at once.


def _measured(task: Task) -> Report:
    """What `Kind.MEASURE` and `Kind.READ` report; all ranks call it together."""
    if task.kind is Kind.MEASURE:
        results, others = measure(
            task.config, task.options, say=lambda text: Report(progress=text).write()
        )
        report = Report(results=results, others=others)
    else:
        from tfddl.bench import reading, session

        session.start(task.options)
        found = reading.measure_reading(Path(task.directory), task.config)
        report = Report(results=Results(reading=found))
    _wait_for_all()
    return report


def _wait_for_all() -> None:
    """Returns when all ranks have come to it: none may be missed by one that is still measuring.

    By the rendezvous, since a collective of TensorFlow's ends on one rank while another one still
    reads from it, and this process ends at once.
    """
    from tfddl._src.runtime import current

    job = current().job
    if job is not None:
        job.rendezvous.gather("the end of tfddl-bench", "done", timeout_s=_END_S)


def measure(
    config: Config, options: InitOptions, *, say: Callable[[str], None]
) -> tuple[Results, tuple[str, ...]]:
    """Measures, within a job, what one job can: collectives and training.

    All workers of the job must call it together, before anything else of TensorFlow or tfddl.

    Args:
        config: What to measure.
        options: For `tfddl.init`.
        say: Takes what is said of the progress, on rank 0.

    Returns:
        What all ranks found, on each of them; and what else ``tfddl.init(collective=…)`` takes in
        this job that would make a difference.
    """
    import tfddl
    from tfddl.bench import collectives, inter_host, session, training

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    label = session.start(options, with_strategy=config.compare or Style.SCOPE in config.styles)
    rank, size = tfddl.rank(), tfddl.size()
    progress = Progress(say if rank == 0 else lambda text: None)
    results = Results(versions=session.versions())
    with progress.within(f"{size} {'workers' if size > 1 else 'worker'}, {label}"):
        here = session.Session(config, label, progress)
        results.machines = here.machines
        if len(here.leaders) > 1:
            results.streams = [inter_host.measure_stream(here)]
        if Part.TRAINING in config.only:
            for workload in config.workloads:
                results.training += training.measure_training(here, workload)
        if Part.COLLECTIVES in config.only and size > 1:
            results.collectives = collectives.measure_collectives(here)
        results.loads = here.loads()
    return results, session.other_collectives()


if __name__ == "__main__":
    main()
