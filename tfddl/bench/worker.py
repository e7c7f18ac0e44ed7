"""A worker of a job of `tfddl-bench`: ``python -m tfddl.bench.worker KIND FLAGS``."""

import logging
import os
import sys
import time
from collections.abc import Callable

from tfddl.bench import flags
from tfddl.bench.config import Config, Part, Style
from tfddl.bench.jobs import Kind, write_report
from tfddl.bench.results import Results

_END_S = 600.0


def main() -> None:
    """Does what the command line says, and reports."""
    kind = Kind(sys.argv[1])
    config = flags.read_config(flags.make_parser("tfddl-bench").parse_args(sys.argv[2:]))
    began_s = time.perf_counter()
    import keras  # noqa: F401
    import tensorflow  # noqa: F401  # What is timed is that it loads.

    import_s = time.perf_counter() - began_s
    if kind in (Kind.MEASURE, Kind.READ):
        _measure(kind, config)
    else:
        from tfddl.bench import startup

        startup.run(kind, config, import_s=import_s)
    write_report("done")
    os._exit(0)  # TensorFlow takes seconds to free what the kernel frees at once.


def _measure(kind: Kind, config: Config) -> None:
    """Reports on rank 0 what all ranks measure together."""
    import tfddl
    from tfddl._src.runtime import current
    from tfddl.bench import reading, session

    if kind is Kind.MEASURE:
        results = measure(config, say=lambda text: write_report("progress", text))
    else:
        session.start(config)
        results = Results(rows=reading.measure_reading(config))
    if tfddl.rank() == 0:
        write_report("others", session.other_collectives())
        write_report("results", results.to_json())
    # None may be missed by one that is still measuring. By the rendezvous, since a collective of
    # TensorFlow's ends on one rank while another one still reads from it, and this process ends at
    # once.
    if (job := current().job) is not None:
        job.rendezvous.gather("the end of tfddl-bench", "done", timeout_s=_END_S)


def measure(config: Config, *, say: Callable[[str], None]) -> Results:
    """Measures, within a job, what one job can: collectives and training.

    All workers of the job must call it together, before anything else of TensorFlow or tfddl. All
    get what all ranks found; rank 0 says how far it is.
    """
    import keras
    import numpy as np
    import tensorflow as tf

    import tfddl
    from tfddl.bench import (
        collectives,
        feeding,
        inter_host,
        session,
        step_cost,
        training,
        virtual_cost,
    )

    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    session.start(config, with_strategy=config.compare or Style.SCOPE in config.styles)
    here = session.Session(config, say)
    results = Results(versions={m.__name__: m.__version__ for m in (tfddl, tf, keras, np)})
    if len(here.leaders) > 1:
        results.rows += inter_host.measure_stream(here)
    if Part.TRAINING in config.only:
        for workload in config.workloads:
            results.rows += training.measure_training(here, workload)
    if Part.STEPS in config.only and here.cluster.size > 1:
        for workload in config.workloads:
            results.rows += step_cost.measure_step_cost(here, workload)
    if Part.VIRTUAL in config.only:
        for workload in config.workloads:
            results.rows += virtual_cost.measure_virtual_cost(here, workload)
    if Part.FEEDING in config.only:
        results.rows += feeding.measure_feeding(here)
    if Part.COLLECTIVES in config.only and here.cluster.size > 1:
        results.rows += collectives.measure_collectives(here)
    results.rows += here.machines()
    return results


if __name__ == "__main__":
    main()
