"""The SLURM launcher: each job is a job of the cluster, submitted and requeued through submitit.

    python -m src.train -m seed=range(5) hydra/launcher=slurm hydra.launcher.resources.slurm_partition=gpu

The process on the login node watches the run folders over the shared file system. It may be killed and started again,
and takes over the cluster's jobs that it left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.sweeps.folder import Job
from src.sweeps.launcher import GRACE, JobLauncher, can_resume, job_environment
from src.sweeps.process import end_with_parent
from src.sweeps.progress import LOG

if TYPE_CHECKING:
    import submitit


class SlurmLauncher(JobLauncher):
    """Submits jobs to a cluster; see conf/hydra/launcher/slurm.yaml."""

    def __init__(self, cluster: str, n_jobs: int, retries: int, requeues: int, resources: Mapping[str, Any]) -> None:
        super().__init__(n_jobs, retries)
        try:
            import submitit
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("hydra/launcher=slurm needs submitit: pip install 'submitit>=1.5.3'.") from error
        if cluster not in ("slurm", "local"):
            raise ValueError(f"hydra.launcher.cluster={cluster}: give slurm or local.")
        if cluster == "slurm" and submitit.SlurmExecutor.affinity() < 0:
            raise ValueError(
                "hydra/launcher=slurm: there is no srun on this machine. Start the sweep on a login node of the "
                "cluster, or try it with hydra.launcher.cluster=local."
            )
        self.poll_seconds = 2.0 if cluster == "slurm" else 0.1
        self.cluster = cluster
        self.requeues = requeues
        self.resources = {name: value for name, value in resources.items() if value is not None}
        try:
            with tempfile.TemporaryDirectory() as folder:
                self._executor(Path(folder), "test")
        except (NameError, AssertionError, TypeError, ValueError) as error:
            raise ValueError(f"hydra.launcher.resources: {error}") from error

    def _executor(self, folder: Path, name: str) -> submitit.AutoExecutor:
        import submitit

        limit = {f"{self.cluster}_max_num_timeout": self.requeues}
        executor = submitit.AutoExecutor(folder=folder / "submitit", cluster=self.cluster, **limit)
        executor.update_parameters(name=name, **self.resources)
        return executor

    def start(self, job: Job, command: list[str], resume: list[str], folder: Path, slot: int) -> submitit.Job[int]:
        executor = self._executor(folder, f"{folder.parent.name}_{job.number}")
        submitted = executor.submit(ClusterTask(command, resume, str(folder)))
        job.cluster_id = submitted.job_id
        return submitted

    def exit_code(self, handle: submitit.Job[int]) -> int | None:
        if not handle.done():
            return None
        if handle.exception() is None:
            return max(handle.results(), key=abs)  # of the task that failed, if one did
        return -signal.SIGKILL  # the scheduler ended it

    def stop(self, handle: submitit.Job[int]) -> None:
        handle.cancel(check=False)  # SIGTERM to every process, and after the cluster's KillWait SIGKILL

    kill = stop

    def reclaim(self, job: Job, folder: Path) -> submitit.Job[int] | None:
        import submitit

        if job.cluster_id is None or self.cluster == "local":
            return None
        earlier: submitit.Job[int] = submitit.SlurmJob(folder / "submitit", job.cluster_id)
        return None if earlier.done(force_check=True) else earlier


class ClusterTask:
    """What each task of the cluster's job runs: the training as a child process, resumed if there is a checkpoint."""

    def __init__(self, command: list[str], resume: list[str], folder: str) -> None:
        self.command = command
        self.resume = resume
        self.folder = folder

    def __call__(self) -> int:
        import submitit

        here = submitit.JobEnvironment()
        warning = here._usr_sig()  # the scheduler's, before the time limit or preemption
        if here.global_rank > 0:  # submitit requeues from rank 0; the others only have to save with it
            signal.signal(warning, lambda *_: self.child.terminate())

        def prepare() -> None:
            signal.signal(warning, signal.SIG_IGN)  # SLURM sends it to the child too, which would die of it
            end_with_parent()

        folder = Path(self.folder)
        with (folder / (LOG if here.global_rank == 0 else f"output_rank{here.global_rank}.log")).open("ab") as log:
            command = self.resume if can_resume(folder) else self.command
            self.child = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=job_environment(), preexec_fn=prepare
            )
            return self.child.wait()

    def checkpoint(self) -> Any:
        """Called by submitit in rank 0 when the scheduler warns: saves, and says what to run in the next job."""
        import submitit

        self.child.terminate()
        kill_at = time.monotonic() + GRACE
        # Not child.wait(): this runs in a signal handler, inside the wait() of __call__, which holds its lock.
        while os.waitid(os.P_PID, self.child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > kill_at:
                os.kill(self.child.pid, signal.SIGKILL)
            time.sleep(0.1)
        return submitit.helpers.DelayedSubmission(ClusterTask(self.command, self.resume, self.folder))
