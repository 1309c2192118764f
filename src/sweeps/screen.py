"""What a sweep shows: a live table on a terminal; elsewhere one line for each job that starts or ends."""

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pandas as pd
from rich.console import Console
from rich.live import Live

from src.runs.folder import from_here
from src.runs.table import rich_table, shown
from src.sweeps.folder import Job
from src.sweeps.study import Trials

# What does not fit on the screen: the end of the queue, and those that have been done the longest.
ORDER = ["running", "failed", "out of memory", "killed", "stopped", "queued", "pruned", "done"]


class Screen:
    """Shows the jobs of a sweep, as many as the terminal has lines for."""

    def __init__(self, trials: Trials) -> None:
        self.trials, self.metric = trials, trials.metrics[0]
        self.console = Console()
        if not self.console.is_terminal:
            self.console.width = 120  # a log has room

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def tell(self, job: Job) -> None:
        """Says what has become of a job, where there is no table to see it in."""
        if not self.console.is_terminal:
            ended = "" if job.status == "running" else f" after {job.seconds:.1f} s"
            value = f", {self.metric} {shown(self.metric, job.value)}" if ended and job.value is not None else ""
            label = self.trials.space.label(job.params)
            self.say(f"job {job.number} {job.status}{ended}{value}  {label}" + (job.reason and f": {job.reason}"))

    def watching(self) -> AbstractContextManager[object]:
        """Keeps the table up to date while the jobs run; it stays as it is at the end."""
        live = Live(console=self.console, get_renderable=self._table)
        return live if self.console.is_terminal else nullcontext()

    def _table(self) -> Any:
        trials, jobs = self.trials, list(self.trials.jobs.values())
        to_come = (trials.n_trials or 0) - len(trials.study.get_trials(deepcopy=False))
        counts = Counter(job.status for job in jobs) + Counter(queued=to_come)
        ranked = sorted(jobs, key=lambda j: (ORDER.index(j.status), j.number if j.status == "queued" else -j.number))
        first = sorted(ranked[: max(4, self.console.height - 8)], key=lambda job: job.number)
        caption = ", ".join(f"{number} {status}" for status, number in counts.items())
        columns = ["job", "overrides", "status", "epoch", self.metric, "seconds"]
        return rich_table(pd.DataFrame(map(self._row, first), columns=columns), str(from_here(trials.folder)), caption)

    def _row(self, job: Job) -> list[str]:
        overrides = self.trials.space.label(job.params) + (job.reason and f"\n{job.reason}")
        epoch = "" if job.epoch is None else str(job.epoch)
        value = "" if job.value is None else shown(self.metric, job.value)
        return [str(job.number), overrides, job.status, epoch, value, f"{job.seconds:.1f}"]
