"""The jobs of a sweep as the trials of an Optuna study, which alone knows what ran and what comes next.

The study lives in the sweep's process; the jobs are processes of a launcher and know nothing of it. What an epoch
reports reaches it through the job's metrics, and a pruned job is asked to stop as Ctrl-C would ask it.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import Trial, TrialState

from src.runs.folder import METRICS
from src.runs.record import read_metrics, read_numbers
from src.sweeps.folder import KEPT, Job, jobs_of, open_storage
from src.sweeps.space import Space


class Grid(optuna.samplers.RandomSampler):
    """Draws nothing: each combination of the listed values is a trial that is enqueued."""


def open_study(storage: str, name: str, sampler: Any, pruner: Any, settings: dict[str, list[str]]) -> optuna.Study:
    """Opens the study of this name in a storage (see `absolute`), or begins it.

    Args:
        settings: the metrics, the directions and the space, which must be those of the study.

    Raises:
        ValueError: the storage cannot be opened, is locked, or has another study under this name.
    """
    options: Any = {"study_name": name, "directions": settings["directions"], "load_if_exists": True}
    for attempt in range(5):
        try:
            study = optuna.create_study(storage=open_storage(storage), sampler=sampler, pruner=pruner, **options)
            if "settings" not in study.user_attrs and not study.trials:
                study.set_user_attr("settings", settings)
            break
        except Exception as error:  # of the file system, a driver, SQLAlchemy or Optuna
            origin = error.__cause__ or error
            cause = str(getattr(origin, "orig", origin)).strip().splitlines()[0]
            if attempt == 4 or not any(word in cause.lower() for word in ("already exists", "unique", "duplicate")):
                raise ValueError(f"hydra.sweeper.storage={storage} cannot be used: {cause}.") from error
            time.sleep(1)  # two machines make the tables of a new database at once: the other one has made them
    for key, here in settings.items():
        there = study.user_attrs.get("settings", {}).get(key)
        if there != here:
            found = f"hydra.sweeper.storage={storage} has another study named {name}; its {key} differs"
            raise ValueError(f"{found}: {there} there, {here} here. Give another hydra.sweeper.study_name.")
    return study


@dataclass(eq=False)
class Trials:
    """Gives a launcher one job after another, and tells the study how each went.

    Attributes:
        folder: of the sweep.
        sweep: its name among those that share the study.
        metrics: that the study is about.
        n_trials: of a search; None for a grid, whose trials are enqueued.
        program: what Python runs with the overrides of a job.
        shared: whether other sweeps work on the study at the same time.
        dry: whether the jobs only try whether they run, and leave no results.
        jobs: those so far, by number.
    """

    study: optuna.Study
    space: Space
    folder: Path
    sweep: str
    metrics: list[str]
    n_trials: int | None
    program: Sequence[str] = ()
    shared: bool = False
    dry: bool = False

    def __post_init__(self) -> None:
        if self.n_trials is None:
            self._enqueue()
        self.jobs = jobs_of(self.study.get_trials(deepcopy=False), self.sweep, self.shared)
        for job in self.jobs.values():
            if job.status in ("running", "stopped"):  # when an earlier start was cut off
                job.status = "queued"

    def _enqueue(self) -> None:
        """Enqueues what failed once more, and what is missing of the grid."""
        trials = self.study.get_trials(deepcopy=False)
        for number, job in jobs_of(trials, self.sweep, self.shared).items():
            if job.failed:
                kept = {**job.trial.user_attrs["job"], "status": "queued"}
                self.study.enqueue_trial(job.trial.params, {"job": kept, "failed_trial": number})
        begun = sum("failed_trial" not in trial.user_attrs for trial in trials)
        for params in self.space.combinations()[begun:]:
            self.study.enqueue_trial(params, skip_if_exists=True)  # by another machine

    def run_folder(self, job: Job) -> Path:
        return self.folder / str(job.number)

    def next(self) -> Job | None:
        """The next job to start, None where there is no more."""
        trials = self.study.get_trials(deepcopy=False)  # of all machines
        old = [job.trial for job in self.jobs.values() if getattr(job.trial, "state", None) == TrialState.RUNNING]
        if old:
            trial = Trial(self.study, old[0]._trial_id)  # Optuna has no other way to go on with one
        elif len(trials) < (self.n_trials or 0) or any(trial.state == TrialState.WAITING for trial in trials):
            trial = self.study.ask()
        else:
            return None
        for name, of in self.space.distributions.items():
            trial._suggest(name, of)  # what `ask` would draw, and what it had not yet drawn when a kill came
        if not old and self.n_trials is None and _enqueued_before(trial, trials):
            trial.set_user_attr("job", {"sweep": "none"})
            self.study.tell(trial, state=TrialState.FAIL)
            return self.next()
        # A journal may come from elsewhere: Optuna refuses what this sweep's own distributions do not have.
        optuna.create_trial(params=trial.params, distributions=self.space.distributions, value=0)
        number = trial.user_attrs.get("failed_trial", trial.number)
        job = self.jobs.setdefault(number, Job(number))
        job.trial, job.params, job.sweep, job.epoch = trial, trial.params, self.sweep, job.epoch if old else None
        return job

    def save(self, job: Job) -> None:
        """Keeps in the study what it does not know of a job that runs."""
        job.trial.set_user_attr("job", {name: getattr(job, name) for name in KEPT})

    def report(self, job: Job) -> bool:
        """Takes the epochs that are new in a job's metrics; true where the job is not worth its time."""
        file, metric = self.run_folder(job) / METRICS, self.metrics[0]
        stamp = (file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None
        if stamp == job.stamp:
            return False
        job.stamp, frame, first = stamp, read_metrics(self.run_folder(job)), 0 if job.epoch is None else job.epoch + 1
        fresh: dict[Any, float] = frame[metric].dropna().loc[first:].to_dict() if metric in frame else {}
        for job.epoch, job.value in fresh.items():
            if len(self.metrics) == 1 and math.isfinite(job.value):
                job.trial.report(job.value, job.epoch)
        return len(self.metrics) == 1 and job.trial.should_prune()

    def ended(self, job: Job) -> None:
        """Takes a job that will not run any more; one that was stopped stays running, for the next start.

        Raises:
            ValueError: the run does not report what the search is about, so that no other run will.
        """
        numbers = read_numbers(self.run_folder(job)) or {}
        values = [numbers.get(name, math.nan) for name in self.metrics]
        complete = all(map(math.isfinite, values))
        job.value = numbers.get(self.metrics[0], job.value)
        if job.status == "done" and not complete and self.n_trials is not None and not self.dry:
            job.status, job.reason = "failed", f"no finite {' and '.join(self.metrics)}"
        self.save(job)
        if job.status == "done" and complete:
            self.study.tell(job.trial, values)
        elif job.status != "stopped":
            self.study.tell(job.trial, state=TrialState.PRUNED if job.status == "pruned" else TrialState.FAIL)
        missing = [name for name in self.metrics if name not in numbers]
        if numbers and missing and self.n_trials is not None:
            known = ", ".join(sorted(numbers))
            raise ValueError(f"hydra.sweeper.metric={missing[0]}: job {job.number} reports none; it reports {known}.")


def _enqueued_before(trial: Trial, trials: list[optuna.trial.FrozenTrial]) -> bool:
    """Whether two machines that began a grid at once enqueued the same trial, of which the first one counts."""
    same = (other for other in trials if other.system_attrs.get("fixed_params", other.params) == trial.params)
    return "failed_trial" not in trial.user_attrs and any(other.number < trial.number for other in same)
