"""What all launchers share: the loop that starts, watches, stops and retries the jobs of a sweep."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from src.sweeps.folder import Job, SweepFolder, entry_point, flags, open_sweep, quote
from src.sweeps.progress import LOG, MetricsFile, read_numbers, why

GRACE = 60.0  # seconds that a job which is told to stop has for its last checkpoint
CONFIG_DIR = ("--config-dir", "-cd")
CONFIG_FLAGS = ("--config-name", "-cn", "--config-path", "-cp", *CONFIG_DIR)
# Hydra's settings of the sweep itself, which its jobs must not see.
OF_THE_SWEEP = ("hydra.launcher", "hydra/launcher", "hydra.sweep", "hydra/sweeper", "hydra.mode", "hydra.run.dir")


class Source(Protocol):
    """Where jobs come from, and who learns of what becomes of them."""

    def next(self) -> Job | None:
        """The next job to start, None where there is no more."""

    def left(self) -> int:
        """How many jobs more there will be that have no place in the table yet."""

    def report(self, job: Job, epoch: int, value: float) -> bool:
        """Takes the metric of an epoch; true stops the job there as not worth its time."""

    def ended(self, job: Job) -> None:
        """Takes a job that will not run any more."""


@dataclass
class _Running:
    job: Job
    handle: Any
    metrics: MetricsFile
    slot: int
    since: float
    before: float  # seconds of earlier attempts
    retries: int
    stop_as: str | None = None  # the status that it gets once it has stopped
    kill_at: float = field(default=float("inf"))


class JobLauncher(Launcher):
    """Runs each job as a command of its own, `n_jobs` at a time, and those that fail `retries` times more."""

    poll_seconds = 0.1

    def __init__(self, n_jobs: int, retries: int) -> None:
        if n_jobs < 1 or retries < 0:
            raise ValueError(f"hydra.launcher: n_jobs={n_jobs} must be 1 or more, and retries={retries} 0 or more.")
        self.n_jobs = n_jobs
        self.retries = retries
        self.folder: SweepFolder

    @abstractmethod
    def start(self, job: Job, command: list[str], resume: list[str], folder: Path, slot: int) -> Any:
        """Starts `command`, or `resume` where there is a checkpoint to go on from, and returns a handle on it."""

    @abstractmethod
    def exit_code(self, handle: Any) -> int | None:
        """None while it runs."""

    @abstractmethod
    def stop(self, handle: Any) -> None:
        """Asks it to save and end."""

    @abstractmethod
    def kill(self, handle: Any) -> None:
        """Ends it, and all that it started, at once."""

    @abstractmethod
    def reclaim(self, job: Job, folder: Path) -> Any:
        """A handle on what an earlier start of the sweep left running, or None once nothing is left."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config
        self.metric = OmegaConf.select(config, "optimized_metric")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise ValueError("hydra/launcher=process and slurm go with hydra/sweeper=grid or optuna.")

    def open(self) -> SweepFolder:
        """Opens the folder of this sweep, and says so where it is one that goes on."""
        from rich.console import Console

        self.console = Console()
        if not self.console.is_terminal and "COLUMNS" not in os.environ:
            self.console.width = 120  # a log has room
        self.folder = open_sweep(self.config)
        OmegaConf.save(self.config, self.folder.path / "multirun.yaml")
        if self.folder.resumed:
            done = sum(job.status == "done" for job in self.folder.jobs)
            self.say(f"Going on with {self.folder.path}, {done} jobs done (hydra.sweep.dir=NEW starts afresh).")
        return self.folder

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def run(self, source: Source) -> None:
        """Runs the jobs of `source` to their end.

        Raises:
            SystemExit: 130 when Ctrl-C or SIGTERM stopped the sweep; its jobs have saved and ended.
        """
        from src.sweeps.table import JobTable

        running: list[_Running] = []
        more = True
        error: Exception | None = None  # told once the jobs have saved and ended, none outlives its sweep
        table = JobTable(str(self.folder.path), self.metric, self.console, self.folder.jobs)
        with _Signals() as signals:
            while True:
                try:
                    while more and not signals.count and error is None and len(running) < self.n_jobs:
                        job = source.next()
                        if job is None:
                            more = False
                        else:
                            slot = min(set(range(self.n_jobs)) - {one.slot for one in running})
                            running.append(self._begin(job, slot))
                except Exception as raised:
                    error = raised
                table.show(self.folder.jobs, source.left(), last=not running)
                if not running:
                    break
                time.sleep(self.poll_seconds)
                for one in list(running):
                    try:
                        ended = self._watch(one, source, signals.count + (error is not None))
                    except Exception as raised:
                        error, ended = error or raised, self.exit_code(one.handle) is not None
                    if ended:
                        running.remove(one)
        if error is not None:
            raise error
        if signals.count:
            self.say(f"Stopped. The same command goes on, or: resume_sweep={self.folder.path}")
            raise SystemExit(130)

    def _begin(self, job: Job, slot: int) -> _Running:
        folder = self.folder.run_folder(job)
        handle = self.reclaim(job, folder)
        job.status, job.reason = "running", ""
        if handle is None:
            if not can_resume(folder):
                _clear(folder)
            folder.mkdir(exist_ok=True)
            job.attempts += 1
            passed_on = [o for o in self.config.hydra.overrides.hydra if not o.lstrip("+~").startswith(OF_THE_SWEEP)]
            program = [sys.executable, *entry_point()]
            run = quote(str(folder))
            fresh = [*flags(*CONFIG_FLAGS), *job.overrides, *passed_on, "hydra.mode=RUN", f"hydra.run.dir={run}"]
            resume = [*program, *flags(*CONFIG_DIR), f"resume={run}"]
            handle = self.start(job, [*program, *fresh], resume, folder, slot)
            self.folder.save()
        metrics = MetricsFile(folder, self.metric)
        return _Running(job, handle, metrics, slot, time.monotonic(), job.seconds, self.retries)

    def _watch(self, one: _Running, source: Source, interrupts: int) -> bool:
        """Brings one job up to date; true where it has ended."""
        job, now = one.job, time.monotonic()
        code = self.exit_code(one.handle)  # before the metrics: those of an ended job are complete
        job.seconds = one.before + now - one.since
        for epoch, value in one.metrics.new():
            job.epoch, job.value = epoch, value
            if source.report(job, epoch, value) and code is None:
                self._stop(one, "pruned")
        if code is None:
            if interrupts:
                self._stop(one, "stopped")
            if now > one.kill_at or interrupts > 1:
                self.kill(one.handle)
            return False

        folder = self.folder.run_folder(job)
        numbers = read_numbers(folder)
        if numbers is not None:
            job.status, job.value = "done", numbers.get(self.metric or "", job.value)
        elif one.stop_as is not None:
            job.status = one.stop_as
        elif code == 0 and can_resume(folder):  # Lightning leaves with 0 when somebody sends it SIGTERM
            job.status, job.reason = "killed", "asked to stop before its end"
        elif code == 0:
            job.status, job.reason = "done", "without results"  # such as a fast_dev_run
        else:
            job.status, job.reason = why(code, folder / LOG)
        if job.failed and one.retries > 0 and not interrupts:
            one.retries -= 1
            again = self._begin(job, one.slot)
            one.handle, one.metrics, one.since, one.before = again.handle, again.metrics, now, job.seconds
            return False
        self.folder.save()
        source.ended(job)
        return True

    def _stop(self, one: _Running, status: str) -> None:
        if one.stop_as is None:
            one.stop_as, one.kill_at = status, time.monotonic() + GRACE
            self.stop(one.handle)


class _Signals:
    """Counts what asks the sweep to stop (Ctrl-C, SIGTERM, a closed terminal) instead of dying of it."""

    def __enter__(self) -> _Signals:
        self.count = 0
        heard = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) is not signal.SIG_IGN]
        self._old = {number: signal.signal(number, self._add) for number in heard}  # nohup ignores the hang-up
        return self

    def _add(self, number: int, frame: Any) -> None:
        self.count += 1

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def job_environment() -> dict[str, str]:
    """The environment of a job: without the switch that the command line sets for itself."""
    return {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}


def can_resume(folder: Path) -> bool:
    return (folder / "checkpoints" / "last.ckpt").exists()


def _clear(folder: Path) -> None:
    """Empties a run folder that has no checkpoint, so that a fresh start mixes with no old figures."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (LOG, "job.lock"):
            path.unlink()
