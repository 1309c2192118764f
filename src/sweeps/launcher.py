"""Runs the jobs of a sweep: each is started, watched, stopped, retried, and said to have ended how.

`ProcessLauncher` starts them as processes of this machine:

python -m src.train -m seed=range(8) hydra.launcher.n_jobs=4 hydra.launcher.gpus_per_job=1
"""

import asyncio
import contextlib
import ctypes
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import joblib

from src.runs.folder import LAST, from_here
from src.runs.record import entry_point, read_numbers
from src.sweeps.folder import Job, lock_file, quote
from src.sweeps.screen import Screen
from src.sweeps.study import Trials

LOG = "output.log"
GRACE = 60  # seconds that a job which is told to stop has for its last checkpoint
MEMORY = ("outofmemory", "out of memory", "memoryerror", "allocate memory", "bad_alloc")


class JobLauncher(ABC):
    """Runs each job as a command of its own, `n_jobs` at a time, and those that fail `retries` times more."""

    poll_seconds = 0.1

    def __init__(self, n_jobs: int, retries: int) -> None:
        self.n_jobs = n_jobs
        self.retries = retries

    @abstractmethod
    def start(self, job: Job, command: list[str], resume: list[str], folder: Path, slot: int) -> Any:
        """Starts `command`, or `resume` where there is a checkpoint to go on from.

        Returns:
            A handle as of `subprocess.Popen`: `poll()` gives the exit code, or None while it runs; `terminate()` asks
            the job to save and end; `kill()` ends it, and all that it started, at once.
        """

    @abstractmethod
    async def reclaim(self, job: Job, folder: Path) -> Any:
        """A handle on what an earlier start of the sweep left running, or None once nothing is left."""

    def run(self, trials: Trials, screen: Screen) -> None:
        """Runs all jobs to their end, each as `python PROGRAM OVERRIDES`.

        Raises:
            SystemExit: 130 when Ctrl-C or SIGTERM stopped the sweep; its jobs have saved and ended.
        """
        self.trials, self.screen = trials, screen
        self.stops: list[Any] = []  # the signals and the errors for which the jobs are to stop
        asyncio.run(self._run())
        for error in self.stops:
            if isinstance(error, Exception):
                raise error  # told once the jobs have saved and ended, none outlives its sweep
        if self.stops:
            screen.say(f"Stopped. The same command goes on, or: resume_sweep={from_here(trials.folder)}")
            raise SystemExit(130)

    async def _run(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores the hang-up
                asyncio.get_running_loop().add_signal_handler(number, self.stops.append, number)
        with self.screen.watching():
            await asyncio.gather(*map(self._work, range(self.n_jobs)))

    async def _work(self, slot: int) -> None:
        """Runs one job after another; `slot` tells this one from those that do the same beside it."""
        try:
            while not self.stops and (job := self.trials.next()) is not None:
                for left in range(self.retries, -1, -1):
                    await self._attempt(job, slot)
                    if self.stops or not (job.failed and left):
                        break
                self.trials.ended(job)
                self.screen.tell(job)
        except Exception as error:
            self.stops.append(error)

    async def _attempt(self, job: Job, slot: int) -> None:
        """Runs a job until its process ends, of itself or because it was asked to."""
        folder = self.trials.run_folder(job)
        job.status, job.reason = "running", ""
        self.trials.save(job)  # so that no other sweep takes it meanwhile
        handle = await self.reclaim(job, folder) or self._start(job, folder, slot)
        self.trials.save(job)
        self.screen.tell(job)
        began, asked, kill_at, code = time.monotonic() - job.seconds, "", float("inf"), None
        try:
            while code is None:
                code = handle.poll()  # before the metrics: those of an ended job are complete
                job.seconds = time.monotonic() - began
                pruned = self.trials.report(job)
                if not asked and (pruned or self.stops):
                    asked, kill_at = "pruned" if pruned else "stopped", time.monotonic() + GRACE
                    handle.terminate()
                if time.monotonic() > kill_at or len(self.stops) > 1:
                    handle.kill()
                await asyncio.sleep(self.poll_seconds if code is None else 0)
        finally:
            (handle.terminate if code is None else handle.kill)()  # what outlived its job, as ranks and workers may
        job.status, job.reason = outcome(folder, code, asked)

    def _start(self, job: Job, folder: Path, slot: int) -> Any:
        if not can_resume(folder):
            shutil.rmtree(folder, ignore_errors=True)  # a fresh start mixes with no old figures
            folder.mkdir()
        overrides, run = self.trials.space.overrides(job.params), f"hydra.run.dir={quote(str(folder))}"
        command = [sys.executable, *self.trials.program, *overrides, "hydra.mode=RUN", run]
        trusted = [override for override in overrides if override.startswith("trusted=")]
        resume = [sys.executable, *entry_point(), *trusted, f"resume={quote(str(folder))}"]
        return self.start(job, command, resume, folder, slot)


class ProcessLauncher(JobLauncher):
    """Runs jobs as processes; see conf/hydra/launcher/process.yaml."""

    def __init__(self, n_jobs: int, gpus_per_job: int | None, retries: int) -> None:
        super().__init__(n_jobs, retries)
        self.gpus_per_job = gpus_per_job
        self.gpus = visible_gpus()
        if gpus_per_job and (needed := n_jobs * gpus_per_job) > (seen := len(self.gpus)):
            fits = f"at most n_jobs={seen // gpus_per_job} fits; gpus_per_job=null trains on what there is."
            raise ValueError(f"hydra.launcher: the jobs need {needed} GPUs, and {seen} can be seen here: {fits}")

    def start(self, job: Job, command: list[str], resume: list[str], folder: Path, slot: int) -> "Process":
        environment = job_environment()
        if self.n_jobs > 1:  # jobs side by side share the cores, or each would start a thread for every one
            environment.setdefault("OMP_NUM_THREADS", str(max(1, joblib.cpu_count() // self.n_jobs)))
        if self.gpus_per_job is not None:
            mine = self.gpus[slot * self.gpus_per_job : (slot + 1) * self.gpus_per_job]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        log = lock_file(folder / LOG)  # the job holds it for as long as it lives, whatever becomes of the sweep
        assert log is not None, f"{folder} is in use"
        streams: Any = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
        line = resume if can_resume(folder) else command
        # In a session of its own: Ctrl-C on the terminal reaches the sweep alone, which then stops its jobs.
        process = Process(line, env=environment, start_new_session=True, preexec_fn=end_with_parent, **streams)
        os.close(log)
        job.id = str(process.pid)
        return process

    async def reclaim(self, job: Job, folder: Path) -> None:
        """Ends a job that outlived a killed sweep, once it has saved; two must not write one run folder."""
        pause, log = 0.05, None
        signals = itertools.chain([signal.SIGTERM], [0] * int(GRACE / pause), itertools.repeat(signal.SIGKILL))
        while folder.exists() and (log := lock_file(folder / LOG)) is None:
            send(job.id, next(signals))
            await asyncio.sleep(pause)
        if log is not None:
            os.close(log)


class Process(subprocess.Popen[bytes]):
    """A job with all that it starts, which are a session of their own."""

    def kill(self) -> None:
        send(str(self.pid), signal.SIGKILL)


def send(pid: str, number: int) -> None:
    """Sends a job a signal: SIGKILL to all that it started, any other to itself alone; it ends its workers itself."""
    with contextlib.suppress(ProcessLookupError, ValueError):  # gone, or its number is not known
        (os.killpg if number == signal.SIGKILL else os.kill)(int(pid), number)


def visible_gpus() -> list[str]:
    """Ids of the GPUs that a process started here would see."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None and shutil.which("nvidia-smi") is not None:
        query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        given = ",".join(subprocess.run(query, capture_output=True, text=True, check=False).stdout.split())
    return [gpu for gpu in (given or "").split(",") if gpu]


def end_with_parent() -> None:
    """Runs in a new process: when the one that started it is killed, Linux asks it to save and end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of linux/prctl.h


def job_environment() -> dict[str, str]:
    """The environment of a job: without the switch that the command line sets for itself."""
    return {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}


def can_resume(folder: Path) -> bool:
    return (folder / LAST).exists()


def outcome(folder: Path, code: int, asked: str) -> tuple[str, str]:
    """Status and one-line reason of a job that ended.

    Args:
        code: its exit code, minus the signal that killed it.
        asked: the status that it gets if it was asked to end; empty if it was not.
    """
    done = read_numbers(folder) is not None
    if done or asked:
        return "done" if done else asked, ""
    if code == 0:  # as after a fast_dev_run
        return "done", "without results"
    lines = (folder / LOG).read_text(errors="replace")[-8192:].splitlines()
    tail = [line.strip() for line in lines if line.strip() and "HYDRA_FULL_ERROR" not in line][-5:]
    if any(word in line.lower() for word in MEMORY for line in tail):
        return "out of memory", tail[-1]
    number = -code if code < 0 else code - 128  # a process that handles signal n leaves with 128 + n
    if number in set(signal.Signals):
        name = signal.Signals(number).name
        return "killed", f"by {name}" + (", often sent when the machine's memory runs out" if name == "SIGKILL" else "")
    return "failed", tail[-1] if tail else f"exit code {code}"
