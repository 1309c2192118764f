"""A sweep folder: what is in it, who may write to it, and how the same command finds it again.

sweep.json    the command, its jobs and how each of them ended
sweep.lock    locked while a sweep runs here
0/ 1/ 2/ ...  one run folder a job
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

RECORD = "sweep.json"
# How a sweep is run, not which jobs it has: with another value of these it is still the same sweep.
HOW = ("hydra.launcher", "hydra/launcher", "hydra.sweep.", "hydra.mode", "hydra.sweeper.n_trials")


@dataclass(eq=False)
class Job:
    """One job of a sweep.

    Attributes:
        number: names its folder.
        overrides: its command line.
        label: what tells it from the other jobs, for people.
        status: queued, running, done, pruned, failed, out of memory, killed or stopped.
        reason: why it ended as it did, one line.
        attempts, seconds: how often and how long it ran.
        epoch, value: the latest epoch that it reported, and the metric there.
        cluster_id: of the scheduler, where one runs it.
    """

    number: int
    overrides: list[str]
    label: str
    status: str = "queued"
    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0
    epoch: int | None = None
    value: float | None = None
    cluster_id: str | None = None

    @property
    def failed(self) -> bool:
        return self.status in ("failed", "out of memory", "killed")


@dataclass
class SweepFolder:
    """An open sweep folder; no other sweep can open it as long as this process lives, which holds `lock`."""

    path: Path
    lock: int
    command: list[str]
    identity: list[str]
    jobs: list[Job] = field(default_factory=list)
    finished: bool = False
    resumed: bool = False
    _given: list[Job] = field(default_factory=list)

    def job(self, overrides: list[str], label: str, number: int | None = None) -> Job:
        """The job of this number, or else of these overrides, as an earlier start left it, or a new one."""
        for job in self.jobs:
            same = job.overrides == overrides if number is None else job.number == number
            if same and job not in self._given:
                break
        else:
            following = 1 + max((job.number for job in self.jobs), default=-1)
            job = Job(following if number is None else number, overrides, label)
            self.jobs.append(job)
        self._given.append(job)
        return job

    def run_folder(self, job: Job) -> Path:
        return self.path / str(job.number)

    def save(self) -> None:
        record = {"command": self.command, "identity": self.identity, "finished": self.finished}
        write_json(self.path / RECORD, {**record, "jobs": [asdict(job) for job in self.jobs]})


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that a reader finds the old file or the new one, never half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def read_record(folder: Path) -> Any:
    """What `SweepFolder.save` wrote, None where there is nothing."""
    path = folder / RECORD
    return json.loads(path.read_text()) if path.is_file() else None


def open_sweep(config: DictConfig) -> SweepFolder:
    """Opens the folder for a sweep: the one where the same command was cut off, or a new one of its own.

    Raises:
        ValueError: `hydra.sweep.dir` names the folder of another sweep, or of one that is running.
    """
    wanted = Path(config.hydra.sweep.dir).absolute()
    given = (*config.hydra.overrides.task, *config.hydra.overrides.hydra)
    identity = [str(config.hydra.job.config_name), *(o for o in given if not o.lstrip("+~").startswith(HOW))]

    def opened(path: Path, record: Any) -> SweepFolder | None:
        path.mkdir(parents=True, exist_ok=True)
        lock = lock_file(path / "sweep.lock")
        if lock is None:
            return None
        if record is None:
            return SweepFolder(path, lock, [*entry_point(), *sys.argv[1:]], identity)
        jobs = [Job(**job) for job in record["jobs"]]
        return SweepFolder(path, lock, record["command"], identity, jobs, record["finished"], resumed=True)

    if any(override.startswith("hydra.sweep.dir=") for override in given):
        record = read_record(wanted)
        if record is not None and record["identity"] != identity:
            raise ValueError(f"{wanted} holds another sweep ({' '.join(record['command'])}): take another folder.")
        folder = opened(wanted, record)
        if folder is None:
            raise ValueError(f"A sweep is running in {wanted}: wait for its end, or take another hydra.sweep.dir.")
        return folder

    for path in sorted((file.parent for file in wanted.parent.glob(f"*/{RECORD}")), reverse=True):
        record = read_record(path)
        if record["identity"] == identity and not record["finished"] and (folder := opened(path, record)):
            return folder

    # Two sweeps of one moment want the same name: whoever locks it first has it.
    path, number = wanted, 0
    while (folder := opened(path, None)) is None or read_record(path) is not None:
        if folder is not None:
            os.close(folder.lock)
        number += 1
        path = wanted.with_name(f"{wanted.name}-{number}")
    return folder


def resumed_command(arguments: list[str]) -> list[str]:
    """The command line that `resume_sweep=FOLDER` stands for; any other one comes back as it is.

    Further arguments follow the saved ones, such as `hydra.launcher.n_jobs=4` or `hydra.sweeper.n_trials=50`.

    Raises:
        FileNotFoundError: FOLDER is no sweep.
    """
    named = [argument for argument in arguments if argument.startswith("resume_sweep=")]
    if not named:
        return arguments
    folder = Path(named[-1].partition("=")[2]).absolute()
    record = read_record(folder)
    if record is None:
        beside = sorted(str(file.parent) for file in folder.parent.glob(f"*/{RECORD}"))
        hint = f" The latest sweep beside it is {beside[-1]}." if beside else ""
        raise FileNotFoundError(f"resume_sweep={folder}: there is no {RECORD}, so it is no sweep's folder.{hint}")
    saved = [a for a in record["command"][len(entry_point()) :] if not a.startswith("hydra.sweep.dir=")]
    more = [argument for argument in arguments if argument not in (*named, *saved)]
    return [*saved, *more, f"hydra.sweep.dir={quote(str(folder))}"]


def entry_point() -> list[str]:
    """What Python was asked to run: `-m src.train`, or a file."""
    spec = sys.modules["__main__"].__spec__
    return [sys.argv[0]] if spec is None else ["-m", spec.name]


def flags(*names: str) -> list[str]:
    """Those of Hydra's flags on the command line that have one of these names, with their values."""
    arguments = iter(sys.argv[1:])
    kept: list[str] = []
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name in names:
            kept += [name, value or next(arguments)]
    return kept


def quote(value: str) -> str:
    """A value as Hydra's command line wants it."""
    if all(c.isalnum() or c in "/-_.:+%" for c in value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def lock_file(path: Path) -> int | None:
    """Locks a file until its descriptor, which is returned, is closed everywhere; None where others hold it."""
    import fcntl

    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
