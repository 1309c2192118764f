"""A sweep folder, how the same command finds it again, and who may write to it.

study.journal  the Optuna study that records the sweep; locked while the sweep runs
0/ 1/ 2/ ...   a run folder for each job
"""

import fcntl
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from src.runs.folder import RunError
from src.runs.record import entry_point
from src.runs.trust import check_places

JOURNAL = "study.journal"
OF_A_SWEEP = ("hydra.sweep", "hydra/sweeper", "hydra.mode", "hydra.launcher.n_jobs", "hydra.launcher.retries")
KEPT = ("sweep", "status", "reason", "seconds", "id")


@dataclass(eq=False)
class Job:
    """One job of a sweep. What Optuna has no word for is `KEPT` in the attribute "job" of its trial.

    Attributes:
        number: names its folder.
        trial: its latest trial; frozen, unless it runs.
        params: the values that it has of what the sweep varies.
        sweep: names the sweep that runs it; a storage may hold the trials of several.
        status: queued, running, done, pruned, failed, out of memory, killed or stopped.
        reason: why it ended as it did, one line.
        seconds: how long it ran.
        id: of its process, or of the cluster's job.
        epoch, value: the latest epoch that it reported, and the metric there.
        stamp: of its file of metrics, when that was read last.
    """

    number: int
    trial: Any = None
    params: dict[str, Any] = field(default_factory=dict)
    sweep: str = ""
    status: str = "queued"
    reason: str = ""
    seconds: float = 0.0
    id: str = ""
    epoch: int | None = None
    value: float | None = None
    stamp: Any = None

    @property
    def failed(self) -> bool:
        return self.status in ("failed", "out of memory", "killed")


def jobs_of(trials: Sequence[Any], sweep: str, shared: bool = False) -> dict[int, Job]:
    """The jobs that this sweep ran or may still run, by number, each as its latest trial (of Optuna) has it.

    Args:
        shared: whether other sweeps take trials of the study: one that runs, and has no name yet, is theirs.

    Raises:
        RunError: a trial repeats none that was there before it.
    """
    jobs = {}
    for trial in trials:
        number, kept = trial.user_attrs.get("failed_trial", trial.number), trial.user_attrs.get("job", {})
        if number not in range(trial.number + 1):
            raise RunError(f"the study has a trial of the job {number!r}, which no sweep has")
        params = trial.system_attrs.get("fixed_params", trial.params)  # the former of one that waits
        job = Job(number, trial, params, **{name: kept[name] for name in KEPT if name in kept})
        if trial.intermediate_values:
            job.epoch, job.value = max(trial.intermediate_values.items())
        if job.sweep == sweep or (job.sweep == "" and not (shared and trial.state.name == "RUNNING")):
            jobs[number] = job
    return jobs


def read_jobs(folder: Path) -> list[Job]:
    """The jobs of a sweep's folder; none where there is no sweep."""
    import optuna

    record = read_record(folder)
    if not record:
        return []
    place = record["storage"] or str(folder / JOURNAL)
    file = place.removeprefix("sqlite:///")
    if "://" not in file and not Path(file).is_file():
        return []  # opening it would make it
    study = optuna.load_study(study_name=record["study_name"], storage=open_storage(place))
    return list(jobs_of(study.get_trials(deepcopy=False), record["sweep"], record["storage"] is not None).values())


def read_record(folder: Path) -> dict[str, Any]:
    """What the study in a sweep's folder says of the sweep; empty where there is none.

    sweep                 its name in its trials
    command, identity     what started it, and what is the same whenever it is started again
    storage, study_name   where its trials are; None is here
    finished              whether there is nothing left to go on with
    """
    path = folder.absolute() / JOURNAL
    studies = open_storage(str(path)).get_all_studies() if path.is_file() else []
    return studies[0].user_attrs.get("sweep", {}) if studies else {}


def absolute(storage: str) -> str:
    """The path of a journal file, or a database URL, so that it holds in any folder."""
    if storage.startswith("sqlite:///"):
        return f"sqlite:///{Path(storage.removeprefix('sqlite:///')).absolute()}"
    return storage if "://" in storage else str(Path(storage).absolute())


def open_storage(storage: str) -> Any:
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    return RDBStorage(storage) if "://" in storage else JournalStorage(JournalFileBackend(storage))


def open_sweep(wanted: Path, named: bool, identity: list[str]) -> tuple[Path, dict[str, Any]]:
    """Opens the folder for a sweep: the one where the same command was cut off, or a new one of its own.

    Args:
        wanted: the name that a new one has.
        named: whether that is the user's choice, and no other will do.
        identity: what is the same whenever a sweep is started again.

    Returns:
        The folder, which no other sweep can open as long as this process lives; and its record, empty if it is new.

    Raises:
        ValueError: the folder that is `named` is taken.
    """
    earlier = [] if named else sweeps_in(wanted.parent)
    # Two sweeps of one moment want the same name: whoever locks it first has it.
    for path in chain(earlier, [wanted], (wanted.with_name(f"{wanted.name}-{number}") for number in count(1))):
        path.mkdir(parents=True, exist_ok=True)
        if (lock := lock_file(path / JOURNAL)) is not None:
            record = read_record(path)
            if record.get("identity", identity) == identity and (named or not record.get("finished")):
                return path, record
            os.close(lock)
        if named:
            raise ValueError(f"{wanted} holds another sweep, or one that is running: take another hydra.sweep.dir.")
    raise AssertionError("there is always one name more")


def sweeps_in(folder: Path) -> list[Path]:
    """The folders of the sweeps in a folder, the latest first."""
    return sorted((file.parent for file in folder.glob(f"*/{JOURNAL}")), reverse=True)


def resume_command(folder: Path, more: Sequence[str] = ()) -> list[str]:
    """The command line, from the interpreter on, that goes on with a sweep, with further arguments after its own.

    Raises:
        FileNotFoundError: the folder is no sweep.
        RunError: its command, which may come from elsewhere, is not this program's, or has a word that is refused.
    """
    record, own = read_record(folder), entry_point()
    if not record:
        beside = "".join(f" The latest sweep beside it is {path}." for path in sweeps_in(folder.absolute().parent)[:1])
        raise FileNotFoundError(f"resume_sweep={folder}: there is no {JOURNAL}, so it is no sweep's folder.{beside}")
    command = record.get("command")
    if not isinstance(command, list) or command[: len(own)] != own:
        raise RunError(f"the command of the sweep in {folder} is {command}, not one of python {shlex.join(own)}")
    words = [word for word in command[len(own) :] if word not in ("-m", "--multirun")]
    if doubtful := [word for word in words if word not in more and not _harmless(word, folder)]:
        raise RunError(f"the sweep in {folder} was started with {doubtful[0]}, which is refused unless you add it too")
    print(f"python {shlex.join(command)}", flush=True)
    more = [word for word in more if word not in words]
    return [sys.executable, *command, *more, f"hydra.sweep.dir={quote(str(folder.absolute()))}"]


def _harmless(word: str, folder: Path) -> bool:
    """Whether a word of a command from elsewhere builds nothing, interpolates nothing and writes into the folder alone.

    Nor does it trust a package, or change of Hydra's settings any but those of the sweep.
    """
    key, value_follows, value = word.lstrip("+~").partition("=")
    if word.startswith("-") or not (value_follows or word.startswith("~")) or "_target_" in word or "${" in word:
        return False
    if key in ("trusted", "paths.output_dir", "hydra.sweeper.storage"):
        return False
    try:
        check_places({key: yaml.safe_load(value)}, [folder, *folder.absolute().parents[:3]])  # up to the logs
    except (RunError, yaml.YAMLError):
        return False
    return not key.startswith("hydra") or key.startswith(OF_A_SWEEP)


def quote(value: str) -> str:
    """A value as Hydra's command line wants it."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def lock_file(path: Path) -> int | None:
    """Locks a file until its descriptor, which is returned, is closed everywhere; None where others hold it."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
