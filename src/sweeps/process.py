"""The process launcher: each job is a process of its own on this machine.

python -m src.train -m seed=range(8) hydra.launcher.n_jobs=4 hydra.launcher.gpus_per_job=1
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from src.sweeps.folder import Job, lock_file
from src.sweeps.launcher import GRACE, JobLauncher, can_resume, job_environment
from src.sweeps.progress import LOG

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class ProcessLauncher(JobLauncher):
    """Runs jobs as processes; see conf/hydra/launcher/process.yaml."""

    def __init__(self, n_jobs: int, gpus_per_job: int | None, retries: int) -> None:
        super().__init__(n_jobs, retries)
        self.gpus_per_job = gpus_per_job
        self.gpus = visible_gpus() if gpus_per_job else []
        if gpus_per_job and n_jobs * gpus_per_job > len(self.gpus):
            fits = len(self.gpus) // gpus_per_job
            raise ValueError(
                f"hydra.launcher: n_jobs={n_jobs} with gpus_per_job={gpus_per_job} needs {n_jobs * gpus_per_job} GPUs, "
                f"and {len(self.gpus)} can be seen here ({', '.join(self.gpus) or 'none'}): "
                + (f"at most n_jobs={fits} fits." if fits else "leave gpus_per_job out to train on what there is.")
            )

    def start(
        self, job: Job, command: list[str], resume: list[str], folder: Path, slot: int
    ) -> subprocess.Popen[bytes]:
        environment = job_environment()
        if self.n_jobs > 1:  # jobs side by side share the cores, or each would start a thread for every one
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // self.n_jobs)))
        if self.gpus_per_job is not None:
            mine = self.gpus[slot * self.gpus_per_job : (slot + 1) * self.gpus_per_job]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        lock = lock_file(folder / "job.lock")
        assert lock is not None, f"{folder} is in use"
        with (folder / LOG).open("ab") as log:
            process = subprocess.Popen(
                resume if can_resume(folder) else command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C on the terminal reaches the sweep alone, which then stops its jobs
                pass_fds=(lock,),  # the job holds it for as long as it lives, whatever becomes of the sweep
                preexec_fn=end_with_parent,
            )
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(process.pid).encode(), 0)
        os.close(lock)
        return process

    def exit_code(self, handle: subprocess.Popen[bytes]) -> int | None:
        code = handle.poll()
        if code is not None:
            self.kill(handle)  # ranks and workers that outlived their job
        return code

    def stop(self, handle: subprocess.Popen[bytes]) -> None:
        handle.terminate()  # the job alone: to save it may need its workers, which it then ends itself

    def kill(self, handle: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(handle.pid, signal.SIGKILL)

    def reclaim(self, job: Job, folder: Path) -> None:
        """Ends a job that outlived a killed sweep, once it has saved; two must not write one run folder."""
        path = folder / "job.lock"
        if not path.exists():
            return
        asked, kill_at = False, time.monotonic() + GRACE
        while (lock := lock_file(path)) is None:
            with contextlib.suppress(ProcessLookupError, ValueError):  # gone, or its number is not yet written
                pid = int(path.read_text())
                if time.monotonic() > kill_at:
                    os.killpg(pid, signal.SIGKILL)
                elif not asked:
                    os.kill(pid, signal.SIGTERM)
                    asked = True
            time.sleep(0.05)
        os.close(lock)


def visible_gpus() -> list[str]:
    """Ids of the GPUs that a process started here would see."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [gpu for gpu in given.split(",") if gpu]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()


def end_with_parent() -> None:
    """Runs in a new process: when the one that started it is killed, Linux asks it to save and end."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
