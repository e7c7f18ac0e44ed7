"""All measurements of `tfddl-bench`: which jobs are run, in which order."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tfddl.bench.config import Config, InitOptions, Part, Style
from tfddl.bench.jobs import Kind, Outcome, Task, run_job
from tfddl.bench.progress import Progress
from tfddl.bench.reading import write_examples
from tfddl.bench.results import Results, Start
from tfddl.bench.stats import Spread
from tfddl.bench.targets import HERE, Target
from tfddl.bench.workloads import Workload

SINGLE = "plain Keras, one process"


class Experiment:
    """Runs the jobs of one command.

    Usage::

        results = Experiment(config, target, environment=os.environ, say=print).run()
    """

    def __init__(
        self,
        config: Config,
        target: Target,
        *,
        environment: Mapping[str, str],
        say: Callable[[str], None],
    ) -> None:
        self._config, self._target, self._environment = config, target, environment
        self._progress = Progress(say)
        self._results = Results()
        # Where the user names none, jobs report what else there is.
        self._options = list(config.init_options())

    def run(self) -> Results:
        """Measures what is asked for.

        Raises:
            LaunchError: A job failed, or there are fewer slots than workers.
            OSError: The file of examples can't be written.
        """
        began_s = time.monotonic()
        config, only = self._config, self._config.only
        workers = ", ".join(map(str, config.workers))
        self._progress.say(
            f"{', '.join(only)}, with {workers} workers on {self._target.describe()}, "
            f"{config.rounds} rounds of each"
        )
        for num_workers in config.workers:
            hosts = self._target.layout(num_workers)
            self._results.layouts[num_workers] = {host.name: host.slots for host in hosts}
            if {Part.COLLECTIVES, Part.TRAINING} & set(only):
                self._measure(num_workers)
        if Part.START in only:
            for workload in config.workloads:
                with self._progress.within(f"starts of {workload.label}"):
                    self._start(max(config.workers), workload)
        if Part.READING in only:
            self._read()
        if not self._target.hosts:  # Workers know it by an address.
            here = self._results.machines
            self._results.machines = [dataclasses.replace(m, hosts=(HERE,)) for m in here]
        self._results.seconds = time.monotonic() - began_s
        return self._results

    def _measure(self, num_workers: int) -> None:
        """A job for each transport; TensorFlow's strategy is compared in the first."""
        for number, options in enumerate(self._options):  # It grows meanwhile.
            if number and num_workers == 1:
                break  # One worker has nobody to send to, by whatever transport.
            config = dataclasses.replace(self._config, compare=False) if number else self._config
            task = Task(kind=Kind.MEASURE, config=config, options=options)
            self._results.add(self._run(num_workers, task).results)

    def _start(self, num_workers: int, workload: Workload) -> None:
        """Starts each kind of training in turns; of the first model some several times."""
        config, outcomes = self._config, dict[tuple[int, str], list[Outcome]]()
        plain = Task(kind=Kind.START, config=config, style=Style.PLAIN, workload=workload)

        def start(task: Task, workers: int = num_workers, label: str = "") -> None:
            outcome = self._run(workers, task)
            key = workers, label or outcome.samples[0].label
            outcomes.setdefault(key, []).append(outcome)

        def with_tfddl(options: InitOptions) -> Task:
            return dataclasses.replace(plain, style=Style.OPTIMIZER, options=options)

        is_first = workload == config.workloads[0]
        for number in self._progress.rounds(config.starts if is_first else 1):
            if is_first:
                start(plain, 0, SINGLE)
            start(with_tfddl(self._options[0]))
            if number:
                continue
            start(plain)
            if config.compare and num_workers > 1:
                start(dataclasses.replace(plain, style=Style.STRATEGY))
            if config.starts > 1 and num_workers > 1:
                for options in self._options[1:]:
                    start(with_tfddl(options))
        self._results.starts += [
            _summary(workers, workload.model, label, found)
            for (workers, label), found in outcomes.items()
        ]

    def _read(self) -> None:
        config = self._config
        with tempfile.TemporaryDirectory(prefix="tfddl-bench-", dir=config.file_dir) as directory:
            self._progress.say(f"writing {config.file_size / 1e6:.0f} MB to {config.file_dir}")
            write_examples(Path(directory), config.num_examples)
            task = Task(kind=Kind.READ, config=config, directory=directory)
            for num_workers in config.workers:
                self._progress.say(f"{num_workers} workers read it")
                self._results.add(self._run(num_workers, task).results)

    def _run(self, num_workers: int, task: Task) -> Outcome:
        """A job of so many workers; 0 is one process that has a host to itself."""
        target = self._target
        outcome = run_job(
            target.command(num_workers) if num_workers else target.single_command(),
            task,
            num_workers=num_workers or 1,
            environment=self._environment,
            say=self._progress.say,
        )
        if not self._config.transports:
            for name in outcome.others:
                options = dataclasses.replace(self._options[0], collective=name)
                if options not in self._options:
                    self._options.append(options)
        return outcome


def _summary(workers: int, model: str, label: str, outcomes: Sequence[Outcome]) -> Start:
    samples = [sample for outcome in outcomes for sample in outcome.samples]

    def slowest(name: str) -> float:
        return statistics.median(max(getattr(s, name) for s in o.samples) for o in outcomes)

    return Start(
        workers=workers,
        model=model,
        transport=label,
        total_s=Spread.of([outcome.step_s for outcome in outcomes]),
        import_s=slowest("import_s"),
        init_s=slowest("init_s"),
        first_step_s=slowest("first_step_s"),
        started_bytes=round(statistics.median(s.started_bytes for s in samples)),
        kept_bytes=round(statistics.median(s.kept_bytes for s in samples)),
        gradient_bytes=samples[0].gradient_bytes,
    )
