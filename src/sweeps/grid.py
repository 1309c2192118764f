"""The sweeper of plain lists, default of `-m`: every combination of the listed values is a job.

python -m src.train -m model=vgg11_bn,resnet18 seed=range(5)
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from src.sweeps.folder import Job
from src.sweeps.launcher import JobLauncher
from src.sweeps.progress import LOG


class JobSweeper(Sweeper):
    """What the sweepers share: reading overrides, composing them, and the end of a sweep."""

    config: DictConfig
    launcher: JobLauncher

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.loader: ConfigLoader = hydra_context.config_loader
        launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)
        if not isinstance(launcher, JobLauncher):
            name = config.hydra.runtime.choices["hydra/launcher"]
            raise ValueError(f"hydra/launcher={name} does not go with the sweepers here: give process or slurm.")
        self.launcher = launcher

    def parse(self, params: Mapping[str, object], arguments: Sequence[str]) -> list[Override]:
        """Overrides as Hydra reads them; of two for one key the later one counts, the command line after the file."""
        lines = [*(f"{key}={value}" for key, value in params.items()), *arguments]
        parsed = OverridesParser.create(config_loader=self.loader).parse_overrides(lines)
        return list({override.get_key_element(): override for override in parsed}.values())

    def validate(self, jobs: Sequence[Sequence[str]]) -> None:
        """Composes the jobs' configs, so that Hydra tells of a wrong key or choice before any job starts.

        Composing takes some 0.1 s, so jobs that differ only in plain values are composed once.
        """

        def shape(override: str) -> str:
            key = override.partition("=")[0]
            return override if self.loader.get_group_options(key.lstrip("+~")) else key

        for job in {tuple(map(shape, job)): job for job in jobs}.values():
            self.loader.load_sweep_config(self.config, list(job))

    def finish(self, jobs: Sequence[Job], most: int | None = None) -> None:
        """Writes the summary of a sweep that came to its end, and prints its rows, or the best `most` of them.

        Raises:
            SystemExit: some jobs failed; the code is their number (125 stands for more, shells use those above).
        """
        from src.sweeps import summary

        launcher, folder, say = self.launcher, self.launcher.folder, self.launcher.say
        folder.save()
        rows = summary.write(folder.path)
        known = sorted({name for row in rows for name in row["metrics"]})
        if rows:
            launcher.console.print(summary.table(rows, launcher.metric, most))
        if known and launcher.metric not in (None, *known):
            say(f"No run reports optimized_metric={launcher.metric}; they report {', '.join(known)}.")
        failed = [job for job in jobs if job.failed]
        for job in failed:
            say(f"job {job.number} {job.status}: {job.reason} (see {folder.run_folder(job) / LOG})")
        count = Counter(job.status for job in jobs)
        say(f"{', '.join(f'{number} {status}' for status, number in count.items())}: {folder.path}")
        if failed:
            if not folder.finished:
                say("The same command starts those that failed again.")
            raise SystemExit(min(len(failed), 125))


class GridSweeper(JobSweeper):
    """Runs the product of the values; a job that fails does not end the others.

    Args:
        params: sweeps that a config file brings along, key to values.
    """

    def __init__(self, params: Mapping[str, object]) -> None:
        self.params = params

    def sweep(self, arguments: list[str]) -> None:
        """Runs the jobs that no earlier start has done.

        Raises:
            ValueError: there is no job. And what Hydra raises where a job's config cannot be composed.
            SystemExit: jobs failed (see `finish`), or the sweep was stopped.
        """
        overrides = self.parse(self.params, arguments)
        jobs = [list(job) for job in itertools.product(*map(_values, overrides))]
        if not jobs:
            empty = [str(o.input_line) for o in overrides if not _values(o)]
            raise ValueError(f"The sweep is empty: {', '.join(empty)} stands for no value.")
        self.validate(jobs)

        shared = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
        folder = self.launcher.open()
        listed = [folder.job(job, " ".join(o for o in job if o not in shared)) for job in jobs]
        todo = [job for job in listed if job.status != "done"]
        for job in todo:
            job.status = "queued"
        folder.save()
        self.launcher.run(JobList(todo))
        folder.finished = all(job.status == "done" for job in listed)
        self.finish(listed)


class JobList:
    """A source of jobs that are all known beforehand."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._jobs = iter(jobs)

    def next(self) -> Job | None:
        return next(self._jobs, None)

    def left(self) -> int:
        return 0

    def report(self, job: Job, epoch: int, value: float) -> bool:
        return False

    def ended(self, job: Job) -> None:
        pass


def _values(override: Override) -> list[str]:
    """An override as those of one value that it stands for."""
    key = override.get_key_element()
    if override.is_interval_sweep():
        raise ValueError(
            f"{override.input_line}: an interval has no list of values; name them, or search it: hydra/sweeper=optuna."
        )
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [key if override.is_delete() else f"{key}={override.get_value_element_as_str()}"]
