"""All measurements of `tfddl-bench`: which jobs are run, in which order."""

import dataclasses
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfddl._src.launcher.hosts import render_hosts
from tfddl.bench import reading
from tfddl.bench.config import Config, Part
from tfddl.bench.interleave import count_rounds
from tfddl.bench.jobs import Kind, run_job
from tfddl.bench.results import PLAIN, SINGLE, Labels, Results, Row
from tfddl.bench.targets import Target

Reports = list[tuple[float, str, Any]]


@dataclasses.dataclass
class Experiment:
    """Runs the jobs of one command, whose flags workers read, too."""

    config: Config
    target: Target
    flags: Sequence[str]
    environment: Mapping[str, str]
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._results = Results()
        # Where the user names none, jobs report what else there is.
        self._collectives = list(self.config.collective or ("auto",))

    def run(self) -> Results:
        """Measures what is asked for; raises LaunchError where a job fails."""
        began_s = time.monotonic()
        config, only = self.config, self.config.only
        if {Part.COLLECTIVES, Part.TRAINING, Part.STEPS, Part.VIRTUAL, Part.FEEDING} & set(only):
            for num_workers in config.workers:
                self._measure(num_workers)
        if Part.START in only:
            for model in config.models:
                self._start(max(config.workers), model)
        if Part.READING in only:
            with tempfile.TemporaryDirectory(prefix="tfddl-bench-", dir=config.file_dir) as name:
                reading.make_file(Path(name), config.num_examples)
                for num_workers in config.workers:
                    self._run(num_workers, Kind.READ, f"--file-dir={name}")
        if Part.SCALING in only:
            from tfddl.bench import scaling

            self._results.rows += scaling.measure_scaling(config, self.say)
        self._results.seconds = time.monotonic() - began_s
        return self._results

    def _measure(self, num_workers: int) -> None:
        """A job for each process group; TensorFlow's strategy is compared in the first."""
        for number, collective in enumerate(self._collectives):  # It grows meanwhile.
            # One worker has nobody to send to, by whatever means; and steps' parts are known of
            # tfddl's own collectives only.
            if number and (
                num_workers == 1
                or set(self.config.only) <= {Part.STEPS, Part.VIRTUAL, Part.FEEDING}
            ):
                break
            flags = [f"--collective={collective}", *(["--no-compare"] if number else [])]
            self._run(num_workers, Kind.MEASURE, *flags)

    def _start(self, num_workers: int, model: str) -> None:
        """Starts each kind of job in turns."""
        starts: dict[str, list[dict[str, float]]] = defaultdict(list)

        def start(workers: int, kind: Kind, collective: str = "auto") -> None:
            flags = f"--models={model}", f"--collective={collective}"
            reports = self._run(workers, kind, *flags)
            [by] = {value for _, name, value in reports if name == "by"}
            starts[by if workers else SINGLE].append(_summary(reports))

        for _ in count_rounds(self.config.starts, f"starts of {model}", self.say):
            start(0, Kind.START_PLAIN)
            start(num_workers, Kind.START_PLAIN)
            start(num_workers, Kind.START_TFDDL, self._collectives[0])
            for collective in self._collectives[1:] if num_workers > 1 else ():
                start(num_workers, Kind.START_TFDDL, collective)
            if self.config.compare and num_workers > 1:
                start(num_workers, Kind.START_STRATEGY)
        medians = {
            by: {name: statistics.median(s[name] for s in found) for name in found[0]}
            for by, found in starts.items()
        }
        for by, values in medians.items():
            number = num_workers if by != SINGLE else 1
            labels: Labels = {"workers": number, "model": model, "by": by}
            values["more_s"] = values["start_s"] - medians[SINGLE]["start_s"]
            values["ratio"] = values["start_s"] / medians[SINGLE]["start_s"]
            if by not in (PLAIN, SINGLE):
                for name in ("memory_mb", "memory_at_start_mb"):
                    values[f"more_{name}"] = values[name] - medians[PLAIN][name]
                values["more_in_gradients"] = values["more_memory_mb"] / values["gradient_mb"]
            self._results.rows.append(Row("starts", labels, values))

    def _run(self, num_workers: int, kind: Kind, *flags: str) -> Reports:
        """Takes in the results of a job; its flags override the command's."""
        where = render_hosts(self.target.layout(num_workers or 1))
        self.say(f"{kind}: {num_workers or 1} on {where}")
        command = self.target.command(num_workers)
        reports = run_job(
            [*command, "-m", "tfddl.bench.worker", kind, *self.flags, *flags],
            num_workers=num_workers or 1,
            environment=self.environment,
            say=self.say,
        )
        for _, name, value in reports:
            if name == "results":
                self._results.add(Results.from_json(value))
            if name == "others" and not self.config.collective:
                self._collectives += [other for other in value if other not in self._collectives]
        return reports


def _summary(reports: Reports) -> dict[str, float]:
    """Of a start: times of the slowest worker, medians of what else workers measured."""
    samples = [value for _, name, value in reports if name == "sample"]
    values = {"start_s": max(at_s for at_s, name, _ in reports if name == "stepped")}
    for name in samples[0]:
        reduce = max if name.endswith("_s") else statistics.median
        values[name] = reduce(sample[name] for sample in samples)
    return values
