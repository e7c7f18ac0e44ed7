"""The command `tfddl-bench`."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence

from tfddl._src.cpu import num_affinity_cores
from tfddl._src.launcher.system import require_linux
from tfddl.bench import flags, plots
from tfddl.bench.config import Config
from tfddl.bench.experiment import Experiment
from tfddl.bench.report import compare, report
from tfddl.bench.results import Results, read_json, write_json
from tfddl.errors import DataError, TfddlError

_FAILED = 1
_INTERRUPTED = 130
_NO_PLOTS = "--plots draws with matplotlib, which isn't installed. HINT: pip install 'tfddl[plots]'"


def main(argv: Sequence[str], *, prog: str = "tfddl-bench") -> int:
    """Measures as the arguments say, and returns the exit status."""
    began_s = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"{prog}: [{time.monotonic() - began_s:3.0f} s] {text}\n")
        sys.stderr.flush()

    try:
        arguments = flags.make_parser(prog).parse_args(argv)
        if arguments.diff is not None:
            sys.stdout.write(compare(*map(read_json, arguments.diff)) + "\n")
        else:
            _measure(arguments, argv, prog, say)
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted; all workers are ended\n")
        return _INTERRUPTED
    except (TfddlError, OSError) as error:
        sys.stderr.write(f"{prog}: {type(error).__name__}: {error}\n")
        return _FAILED
    return 0


def run() -> None:
    """The console script."""
    # Ends all workers, as whatever raises does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))


def _measure(
    arguments: argparse.Namespace, argv: Sequence[str], prog: str, say: Callable[[str], None]
) -> None:
    target = flags.read_target(arguments)
    workers = target.usual_workers(num_affinity_cores(), is_quick=arguments.quick)
    config = flags.read_config(arguments, workers=workers)
    flags.check_target(config, target)
    config.prepare()
    require_linux(prog)
    if config.plots is not None and not plots.is_available():
        raise DataError(_NO_PLOTS)
    if not arguments.in_job:
        _write(Experiment(config, target, argv, os.environ, say).run(), config, say)
        return
    import tfddl
    from tfddl.bench.worker import measure

    began_s = time.monotonic()
    results = measure(config, say=say)
    results.seconds = time.monotonic() - began_s
    is_first = tfddl.rank() == 0
    tfddl.barrier()
    tfddl.shutdown()
    if is_first:
        _write(results, config, say)


def _write(results: Results, config: Config, say: Callable[[str], None]) -> None:
    results.options = vars(config)
    sys.stdout.write(report(results) + "\n")
    if config.json is not None:
        write_json(results, config.json)
        say(f"wrote {config.json}")
    if config.plots is not None:
        for path in plots.write_pictures(results, config.plots):
            say(f"wrote {path}")
    if config.logdir is not None:
        plots.write_events(results, config.logdir)
        say(f"wrote events: tensorboard --logdir {config.logdir}")
