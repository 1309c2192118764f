"""The Optuna sweeper: searches a space of values, and stops early the runs that promise nothing.

    python -m src.train -m hydra/sweeper=optuna 'optimizer.lr=interval(1e-4,1)' 'model=choice(tinyvgg,nin)'

The study lives in this process; the jobs are processes of a launcher and know nothing of it. What an epoch reports
reaches the study through the job's csv/metrics.csv, and a pruned job is asked to stop as Ctrl-C would ask it.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import ListConfig, OmegaConf

from src.sweeps.folder import Job, SweepFolder, entry_point, flags, write_json
from src.sweeps.grid import JobSweeper
from src.sweeps.launcher import CONFIG_FLAGS
from src.sweeps.progress import read_numbers

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

    from src.sweeps.space import Space


class OptunaSweeper(JobSweeper):
    """Asks Optuna for one job after another; see conf/hydra/sweeper/optuna.yaml."""

    def __init__(
        self,
        metric: str | Sequence[str],
        direction: str | Sequence[str],
        n_trials: int,
        sampler: str,
        sampler_options: Mapping[str, Any] | None,
        pruner: str,
        pruner_options: Mapping[str, Any] | None,
        seed: int | None,
        storage: str | None,
        study_name: str,
        params: Mapping[str, object],
    ) -> None:
        self.metrics = _listed(metric)
        self.directions = _listed(direction)
        self.n_trials = n_trials
        self.sampler = (sampler, {"seed": seed, **(sampler_options or {})})
        self.pruner = (pruner, dict(pruner_options or {}))
        self.storage = storage
        self.study_name = study_name
        self.params = params

    def sweep(self, arguments: list[str]) -> None:
        """Runs the trials that no earlier start has run, then writes study.json, summary and figures.

        Raises:
            ValueError: settings that do not exist or do not go together; nothing has started then.
            SystemExit: jobs failed (see `finish`), or the sweep was stopped.
        """
        from src.sweeps.space import Space
        from src.sweeps.study import OWN_STORAGE, make_pruner, make_sampler, open_study

        space = Space.of(self.parse(self.params, arguments))
        self.validate(space.corners())
        if self.pruner[0] != "none" and "logger" in self.config and OmegaConf.select(self.config, "logger.csv") is None:
            raise ValueError(
                f"hydra.sweeper.pruner={self.pruner[0]} reads csv/metrics.csv: it needs logger=csv or default."
            )
        sampler = make_sampler(*self.sampler, space, len(self.metrics))
        pruner = make_pruner(*self.pruner, len(self.metrics))

        def study_in(storage: str) -> Study:
            return open_study(storage, self.study_name, sampler, pruner, space, self.metrics, self.directions)

        # A shared storage that does not fit is told before there is a folder.
        study = study_in(self.storage) if self.storage is not None else None
        self.launcher.metric = self.metrics[0]
        folder = self.launcher.open()
        study = study or study_in(str(folder.path / OWN_STORAGE))
        n_trials = min(self.n_trials, space.size()) if self.sampler[0] == "grid" else self.n_trials
        folder.finished = False
        folder.save()
        self.launcher.run(Trials(study, space, folder, self.metrics, n_trials))
        folder.finished = True
        self.report(study, space)
        self.finish(folder.jobs, most=10)

    def report(self, study: Study, space: Space) -> None:
        """Prints the best trials with the commands that repeat them; writes study.json and the figures."""
        from optuna.trial import TrialState

        from src.sweeps.plots import draw
        from src.sweeps.study import importances

        folder = self.launcher.folder.path
        trials = study.get_trials(deepcopy=False)
        best = study.best_trials if any(trial.state == TrialState.COMPLETE for trial in trials) else []
        program = ["python", *entry_point(), *flags(*CONFIG_FLAGS), *space.fixed]

        def command(trial: FrozenTrial) -> str:
            return shlex.join([*program, *space.overrides(trial.params)])

        result = {
            "study_name": study.study_name,
            "metrics": self.metrics,
            "directions": self.directions,
            "log": [key for key, of in space.distributions.items() if getattr(of, "log", False)],
            "best": [trial.number for trial in best],
            "importances": importances(study, self.metrics),
            "trials": [
                {
                    "number": trial.number,
                    "state": trial.state.name.lower(),
                    "values": trial.values,
                    "params": trial.params,
                    "epochs": {str(epoch): value for epoch, value in trial.intermediate_values.items()},
                    "command": command(trial),
                }
                for trial in trials
            ],
        }
        pictures = draw(result, folder / "figures")
        write_json(folder / "study.json", {**result, "figures": [path.name for path in pictures]})
        for trial in best:
            values = ", ".join(f"{name} {value:.4f}" for name, value in zip(self.metrics, trial.values, strict=True))
            self.launcher.say(
                f"{'Best' if len(self.metrics) == 1 else 'Not dominated'}: trial {trial.number}, {values}"
            )
            self.launcher.say(f"  {command(trial)}")


class Trials:
    """A source of jobs: each is a trial of a study, and tells the study how it went."""

    def __init__(self, study: Study, space: Space, folder: SweepFolder, metrics: Sequence[str], n_trials: int) -> None:
        from optuna.trial import Trial, TrialState

        self.study = study
        self.space = space
        self.folder = folder
        self.metrics = metrics
        self.n_trials = n_trials
        self._trials: dict[int, Trial] = {}
        running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        # Those that an earlier start of this sweep left, and not those of other machines.
        mine = [trial for trial in running if trial.user_attrs.get("sweep") == str(folder.path)]
        self._cut_off = [Trial(study, trial._trial_id) for trial in mine]
        self._left = 0

    def next(self) -> Job | None:
        begun = len(self.study.get_trials(deepcopy=False))  # on all machines
        if self._cut_off:
            trial = self._cut_off.pop(0)
        elif begun < self.n_trials:
            trial = self.study.ask(self.space.distributions)
            trial.set_user_attr("sweep", str(self.folder.path))
            begun += 1
        else:
            return None
        self._left = len(self._cut_off) + max(0, self.n_trials - begun)
        label = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in trial.params.items())
        overrides = [*self.space.fixed, *self.space.overrides(trial.params)]
        job = self.folder.job(overrides, label, trial.number)
        self._trials[job.number] = trial
        return job

    def left(self) -> int:
        return self._left

    def report(self, job: Job, epoch: int, value: float) -> bool:
        known = self.study.get_trials(deepcopy=False)[job.number].intermediate_values
        if len(self.metrics) > 1 or epoch in known or not math.isfinite(value):
            return False
        self._trials[job.number].report(value, epoch)
        return self._trials[job.number].should_prune()

    def ended(self, job: Job) -> None:
        from optuna.trial import TrialState

        trial = self._trials[job.number]
        numbers = read_numbers(self.folder.run_folder(job)) or {}
        values = [numbers.get(name, math.nan) for name in self.metrics]
        if job.status == "stopped":
            return  # it stays running in the study, and goes on with the next start
        if job.status == "pruned":
            self.study.tell(trial, state=TrialState.PRUNED)
        elif all(map(math.isfinite, values)):
            self.study.tell(trial, values)
        else:
            self.study.tell(trial, state=TrialState.FAIL)
            missing = [name for name in self.metrics if name not in numbers]
            if numbers and missing:
                raise ValueError(
                    f"hydra.sweeper.metric={missing[0]}: job {job.number} does not report it; "
                    f"it reports {', '.join(sorted(numbers))}."
                )
            if job.status == "done":
                job.status, job.reason = "failed", f"no finite {' and '.join(self.metrics)}"


def _listed(value: str | Sequence[str]) -> list[str]:
    return list(value) if isinstance(value, (list, tuple, ListConfig)) else [str(value)]
