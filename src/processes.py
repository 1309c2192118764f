"""One run folder for processes that torchrun or SLURM's srun started together, and for a job that starts again.

Hydra names a run folder by the time, which each of them would read for itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path


def joined_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line of src.train, with the folder that all processes share; in a job that starts again, `resume=`.

    Nothing is added where the line says which folder, and where there is one process.
    """
    own = ("hydra.run.dir=", "resume=", "resume_sweep=")
    if {"-m", "--multirun"} & set(arguments) or any(argument.startswith(own) for argument in arguments):
        return list(arguments)
    name = _slurm_name() or _torchrun_name()
    if name is None:
        return list(arguments)
    logs = [a.partition("=")[2].strip("'\"") for a in arguments if a.startswith("paths.log_dir=")]
    folder = Path(*logs[-1:] or ["logs"], "train/runs", name)
    restarts = os.environ.get("SLURM_RESTART_COUNT") or os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"
    if int(restarts) and (folder / "checkpoints/last.ckpt").is_file():
        return [f"resume='{folder}'"]
    return [*arguments, f"hydra.run.dir='{folder}'"]


def _slurm_name() -> str | None:
    """Equal in all tasks of a job's step, and in the job that is requeued."""
    job, step = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_STEP_ID")
    if job is None or step is None or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return None
    return f"slurm_{job}.{step}"


def _torchrun_name() -> str | None:
    """Agreed upon over torchrun's own store, which outlives the processes that it starts again."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return None
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise ValueError("give the processes one run folder: hydra.run.dir=logs/train/runs/NAME")
    from torch.distributed import TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = "lightning-classics run folder"
    if os.environ["RANK"] == "0" and not store.check([key]):
        store.set(key, f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    return store.get(key).decode()
