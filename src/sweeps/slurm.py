"""The SLURM launcher: each job is a job of the cluster, submitted and requeued through submitit.

    python -m src.train -m seed=range(5) hydra/launcher=slurm hydra.launcher.resources.slurm_partition=gpu

The process on the login node watches the run folders over the shared file system. It may be killed and started again,
and takes over the cluster's jobs that it left.
"""

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.sweeps.folder import Job
from src.sweeps.launcher import GRACE, LOG, JobLauncher, can_resume, end_with_parent, job_environment

try:
    import submitit
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("hydra/launcher=slurm needs submitit: pip install -e '.[slurm]'") from error


class SlurmLauncher(JobLauncher):
    """Submits jobs to a cluster; see conf/hydra/launcher/slurm.yaml."""

    def __init__(self, cluster: str, n_jobs: int, retries: int, requeues: int, resources: Mapping[str, Any]) -> None:
        super().__init__(n_jobs, retries)
        self.poll_seconds = 2.0 if cluster == "slurm" else 0.1
        self.cluster = cluster
        self.requeues = requeues
        self.resources = {name: value for name, value in resources.items() if value is not None}
        self._executor(Path())  # submitit tells of a machine without srun and of unknown resources

    def _executor(self, folder: Path) -> Any:
        limit = {f"{self.cluster}_max_num_timeout": self.requeues}
        executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=self.cluster, **limit)
        executor.update_parameters(name=f"{folder.parent.name}_{folder.name}", **self.resources)
        return executor

    def start(self, job: Job, command: list[str], resume: list[str], folder: Path, slot: int) -> "ClusterJob":
        submitted = self._executor(folder).submit(ClusterTask(command, resume, folder))
        job.id = submitted.job_id
        return ClusterJob(submitted)

    async def reclaim(self, job: Job, folder: Path) -> "ClusterJob | None":
        if not job.id or self.cluster == "local":
            return None
        earlier: Any = submitit.SlurmJob(folder / "submitit", job.id)
        return None if earlier.done(force_check=True) else ClusterJob(earlier)


@dataclass
class ClusterJob:
    """A handle on a job of the cluster."""

    job: Any  # submitit's

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        if self.job.exception() is not None:
            return -signal.SIGKILL  # the scheduler ended it
        return max(self.job.results(), key=abs)  # of the task that failed, if one did

    def terminate(self) -> None:
        if not self.job.done():
            self.job.cancel(check=False)  # SIGTERM to every process, and after the cluster's KillWait SIGKILL

    kill = terminate


@dataclass
class ClusterTask:
    """What each task of the cluster's job runs: the training as a child process, resumed if there is a checkpoint."""

    command: list[str]
    resume: list[str]
    folder: Path

    def __call__(self) -> int:
        here = submitit.JobEnvironment()
        warning = here._usr_sig()  # the scheduler's, before the time limit or preemption
        if here.global_rank > 0:  # submitit requeues from rank 0; the others only have to save with it
            signal.signal(warning, lambda *_: self.child.terminate())

        def prepare() -> None:
            signal.signal(warning, signal.SIG_IGN)  # SLURM sends it to the child too, which would die of it
            end_with_parent()

        with (self.folder / (LOG if here.global_rank == 0 else f"output_rank{here.global_rank}.log")).open("ab") as log:
            command = self.resume if can_resume(self.folder) else self.command
            self.child = subprocess.Popen(command, stdout=log, stderr=log, env=job_environment(), preexec_fn=prepare)
            return self.child.wait()

    def checkpoint(self) -> Any:
        """Called by submitit in rank 0 when the scheduler warns: saves, and says what to run in the next job."""
        self.child.terminate()
        signal.signal(signal.SIGALRM, lambda *_: self.child.kill())
        signal.alarm(GRACE)
        # Not child.wait(): this runs in a signal handler, inside the wait() of __call__, which holds its lock.
        os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOWAIT)
        signal.alarm(0)
        return submitit.helpers.DelayedSubmission(ClusterTask(self.command, self.resume, self.folder))
