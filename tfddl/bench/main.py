"""The command `tfddl-bench`."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tfddl._src.cpu import num_affinity_cores
from tfddl._src.launcher.system import require_linux
from tfddl.bench import flags, plots
from tfddl.bench.config import Config
from tfddl.bench.experiment import Experiment
from tfddl.bench.report import report
from tfddl.bench.results import Results, write_json
from tfddl.errors import DataError, TfddlError

_FAILED = 1
_INTERRUPTED = 130
_EVENTS_S = 300.0
_NO_PLOTS = "--plots draws with matplotlib, which isn't installed. HINT: pip install 'tfddl[plots]'"


def main(argv: Sequence[str], *, prog: str = "tfddl-bench") -> int:
    """Measures as the arguments say, and returns the exit status."""
    began_s = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"{prog}: [{time.monotonic() - began_s:3.0f} s] {text}\n")
        sys.stderr.flush()

    try:
        arguments = flags.make_parser(prog).parse_args(argv)
        config, target = flags.read(arguments, num_cores=num_affinity_cores())
        require_linux(prog)
        if config.plots is not None and not plots.is_available():
            raise DataError(_NO_PLOTS)
        if arguments.in_job:
            results = _measure_in_job(config, say)
        else:
            results = Experiment(config, target, environment=os.environ, say=say).run()
        if results is not None:
            _write(results, config, say)
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted; all workers are ended\n")
        return _INTERRUPTED
    except (TfddlError, OSError) as error:
        sys.stderr.write(f"{prog}: {type(error).__name__}: {error}\n")
        return _FAILED
    return 0


def run() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main(sys.argv[1:]))


def _end(number: int, _: object) -> None:
    """Ends all workers, as whatever raises does."""
    sys.exit(128 + number)


def _measure_in_job(config: Config, say: Callable[[str], None]) -> Results | None:
    """Results on rank 0; None elsewhere."""
    import tfddl
    from tfddl.bench.worker import measure

    began_s = time.monotonic()
    results, _ = measure(config, config.init_options()[0], say=say)
    results.seconds = time.monotonic() - began_s
    is_first = tfddl.rank() == 0
    tfddl.barrier()
    tfddl.shutdown()
    return results if is_first else None


def _write(results: Results, config: Config, say: Callable[[str], None]) -> None:
    results.options = config.as_json()
    sys.stdout.write(report(results) + "\n")
    if config.json is not None:
        write_json(results, config.json)
        say(f"wrote {config.json}")
    if config.plots is not None:
        for path in plots.write_pictures(results, config.plots):
            say(f"wrote {path}")
    if config.logdir is not None:
        _write_events(results, config.logdir)
        say(f"wrote events: tensorboard --logdir {config.logdir}")


def _write_events(results: Results, logdir: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="tfddl-bench-") as directory:
        path = Path(directory) / "bench.json"
        write_json(results, path)
        done = subprocess.run(
            [sys.executable, "-m", "tfddl.bench.tensorboard", str(path), str(logdir)],
            env={"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ},
            capture_output=True,
            text=True,
            timeout=_EVENTS_S,
            check=False,
        )
    if done.returncode:
        raise DataError(f"--logdir {logdir} couldn't be written:\n{done.stderr}")
