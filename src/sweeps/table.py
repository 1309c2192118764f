"""The live table of a sweep on a terminal; elsewhere one line for each job that starts or ends."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from src.sweeps.folder import Job

STYLE = {"running": "cyan", "done": "green", "pruned": "yellow", "queued": "dim", "stopped": "yellow"}
REFRESH = 0.25  # seconds


class JobTable:
    """Shows the jobs of a sweep, as many as the terminal has lines for."""

    def __init__(self, title: str, metric: str | None, console: Console, jobs: Sequence[Job]) -> None:
        self.title = title
        self.metric = metric or "metric"
        self.console = console
        self.live = Live(console=console, auto_refresh=False)
        self._told = {job.number: (job.status, job.attempts) for job in jobs}
        self._next = 0.0
        if console.is_terminal:
            self.live.start()

    def show(self, jobs: Sequence[Job], queued: int, last: bool = False) -> None:
        """Brings the screen up to date; `queued` jobs more will come. The `last` time it stays as it is."""
        if not self.console.is_terminal:
            self._tell(jobs)
        elif last or time.monotonic() >= self._next:
            self._next = time.monotonic() + REFRESH
            self.live.update(self._table(jobs, queued), refresh=True)
        if last:
            self.live.stop()

    def _tell(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            state = (job.status, job.attempts)
            if job.status == "queued" or self._told.get(job.number) == state:
                continue
            self._told[job.number] = state
            line = f"job {job.number} {job.status}"
            if job.status != "running":
                line += f" after {job.seconds:.1f} s"
                line += "" if job.value is None else f", {self.metric} {job.value:.4f}"
            line += f"  {job.label}" + (f": {job.reason}" if job.reason else "")
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _table(self, jobs: Sequence[Job], queued: int) -> Table:
        count = Counter(job.status for job in jobs)
        count["queued"] += queued
        caption = ", ".join(f"{number} {status}" for status, number in count.items() if number)
        table = Table(title=self.title, caption=caption, title_justify="left", caption_justify="left")
        for name in ("job", "overrides", "status", "epoch", self.metric, "time"):
            table.add_column(name, justify="left" if name in ("overrides", "status") else "right", no_wrap=True)
        # What does not fit on the screen: the end of the queue, and those that have been done the longest.
        order = ("running", "failed", "out of memory", "killed", "stopped", "queued", "pruned", "done")
        ranked = sorted(jobs, key=lambda j: (order.index(j.status), j.number if j.status == "queued" else -j.number))
        shown = ranked[: max(4, self.console.height - 8)]
        for job in sorted(shown, key=lambda job: job.number):
            table.add_row(
                str(job.number),
                Text(job.label),
                Text(job.status + (f": {job.reason}" if job.failed else ""), STYLE.get(job.status, "red")),
                "" if job.epoch is None else str(job.epoch),
                "" if job.value is None else f"{job.value:.4f}",
                f"{job.seconds:.0f} s" if job.attempts else "",
            )
        if len(shown) < len(jobs):
            table.add_row("", f"and {len(jobs) - len(shown)} more", "", "", "", "")
        return table
