"""A run folder: where it lies, what its files are called, and how they are written.

.hydra/config.yaml   the config as composed            checkpoints/   last.ckpt and epoch_XXX.ckpt, the best
train.log            the epochs as they were printed   csv/           metrics.csv
results.json         metrics, times, versions          tensorboard/   MODEL_DATA_SEED, for tensorboard --logdir
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import yaml

CONF = Path(__file__).resolve().parents[2] / "conf"
LOGS = Path("logs")
CONFIG, OVERRIDES, HYDRA = ".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml"
CHECKPOINTS, LAST = "checkpoints", "checkpoints/last.ckpt"
RESULTS, METRICS = "results.json", "csv/metrics.csv"
CURVES = "figures/curves.png"
# of `python -m src.eval`
EVALUATION, PREDICTIONS, CALIBRATION = "evaluation.json", "predictions.csv", "calibration.json"

FORMULA, NUMBER = ("=", "+", "-", "@", "\t", "\r"), re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?")


class RunError(Exception):
    """A run folder that cannot be used as asked; the message says why and what to do."""


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives the name of a file, or folder, beside `path`, which becomes `path` if all goes well and vanishes otherwise.

    So that a reader finds the old file or the new one, never half of it. The folder around it is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


def from_here(path: Path) -> Path:
    """A path as seen from the working folder, if it lies in there."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def write_whole(path: Path, text: str) -> None:
    """Writes a text file under its name only once it is whole."""
    with whole(path) as partial:
        partial.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under its name only once it is whole."""
    write_whole(path, json.dumps(content, indent=2) + "\n")


def write_csv(path: Path, frame: Any, float_format: str | None = None) -> None:
    """Writes a data frame whole, without its index; what a spreadsheet would run as a formula gets an apostrophe."""

    def plain(cell: Any) -> Any:
        formula = isinstance(cell, str) and cell.startswith(FORMULA) and not NUMBER.fullmatch(cell)
        return f"'{cell}" if formula else cell

    frame = of_texts(frame, plain).rename(columns=plain)
    write_whole(path, frame.to_csv(index=False, float_format=float_format))


def read_csv(path: Path, **options: Any) -> Any:
    """The data frame that `write_csv` wrote; `options` are those of pandas."""

    def as_it_was(cell: Any) -> Any:
        return cell[1:] if isinstance(cell, str) and cell[:1] == "'" and cell[1:].startswith(FORMULA) else cell

    return of_texts(read_table(path, **options), as_it_was)


def read_table(source: Any, **options: Any) -> Any:
    """pandas' `read_csv`, with the numbers to their last bit, as from pandas 3.1 on it reads them by itself."""
    import pandas as pd

    exact: Any = {} if tuple(map(int, pd.__version__.split(".")[:2])) >= (3, 1) else {"float_precision": "round_trip"}
    return pd.read_csv(source, **exact, **options)


def of_texts(frame: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of a data frame with its cells changed, but for columns of numbers, of which there may be thousands."""
    frame, texts = frame.copy(), frame.select_dtypes(exclude="number")
    frame[texts.columns] = texts.map(change)
    return frame


def read_yaml(path: Path) -> Any:
    """A YAML file as plain containers, its interpolations left as text; None where there is none.

    Raises:
        RunError: it is no YAML, or has aliases, by which a few lines can be billions of values.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times quicker, where libyaml is there
    try:
        text = path.read_text() if path.is_file() else ""
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
            raise RunError(f"{path} has YAML aliases, which no file of a run has")
        return yaml.load(text, loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{path} is no YAML file: {str(error).splitlines()[0]}") from error


def read_config(folder: Path) -> dict[str, Any]:
    """A run's config as it was composed, its interpolations left as text.

    Raises:
        RunError: the file is malformed.
    """
    config = read_yaml(folder / CONFIG)
    if not isinstance(config, dict):
        raise RunError(f"{folder / CONFIG} is no config")
    return config


def moved(content: Any, there: str, here: str) -> Any:
    """Plain containers, their paths in the folder `there` led to the folder `here`."""
    if isinstance(content, dict):
        return {moved(key, there, here): moved(value, there, here) for key, value in content.items()}
    if isinstance(content, list):
        return [moved(value, there, here) for value in content]
    inside = isinstance(content, str) and (content == there or content.startswith(f"{there}/"))
    return here + content[len(there) :] if inside else content


def events_folder(folder: Path) -> Path:
    """Where the events of a run lie for TensorBoard: under the run's name in `tensorboard/`."""
    named = (path for path in (folder / "tensorboard").glob("*") if path.is_dir())
    return min(named, default=folder / "tensorboard")


def find_run(name: str | Path, logs: str | Path = LOGS) -> Path:
    """The run folder of that name; "latest" is the newest under `logs` that has a checkpoint.

    Raises:
        RunError: there is none, or the folder is no run.
    """
    if str(name) == "latest":
        found = list(Path(logs).glob(f"**/{LAST}"))
        if not found:
            raise RunError(f"there is no run with a checkpoint under {Path(logs).resolve()}")
        return max(found, key=lambda path: path.stat().st_mtime_ns).parent.parent
    folder = Path(name)
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}")
    if not (folder / CONFIG).is_file():
        nested = sorted(path.parent.parent for path in folder.glob(f"**/{CONFIG}"))
        hint = f"; runs inside it: {', '.join(map(str, nested[:5]))}" if nested else ""
        raise RunError(f"{folder} is no run folder: it has no {CONFIG}{hint}")
    return folder


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders among the folders given and below them, in the order of their names and numbers.

    Raises:
        FileNotFoundError: no such folder, or no run in it.
    """
    found: set[Path] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder {path}")
        inside = [file.parent.parent for file in path.glob(f"**/{CONFIG}")]
        if not inside:
            raise FileNotFoundError(f"{path} is no run and holds none: there is no {CONFIG} in or below it")
        found.update(inside)
    return sorted(found, key=lambda folder: [(not p.isdigit(), int(p) if p.isdigit() else p) for p in folder.parts])


def new_run(parent: str, *names: str | None) -> str:
    """A folder in `parent` for a run that starts, one for all processes that torchrun or SLURM's srun started.

    Args:
        names: of what the run is about, such as its model and its data, which the folder's name ends with.
    """
    begins = _slurm_name() or _torchrun_name() or _time_name()
    return str(Path(parent, "_".join([begins, *(name.replace("/", "-") for name in names if name)])))


@contextmanager
def removed_unless_started(folder: Path) -> Iterator[Callable[[], None]]:
    """Removes a run folder that is new, should the run end before it calls what this gives.

    New is one that holds nothing but what Hydra has just written; that of a sweep's job holds what the job printed.
    """
    new = {path.name for path in folder.iterdir()} <= {Path(CONFIG).parent.name, "train.log"}
    started: list[bool] = []
    try:
        yield partial(started.append, True)
    except BaseException:
        if new and not started and not (folder / LAST).exists():  # started in other processes, such as ddp_spawn's
            shutil.rmtree(folder, ignore_errors=True)
        raise


def draw_seed() -> int:
    """A seed for a run that was given none, one for all processes of the run."""
    if {"LOCAL_RANK", "PL_GLOBAL_SEED"} <= set(os.environ):  # a process that Lightning started, once it had a seed
        return int(os.environ["PL_GLOBAL_SEED"])
    shared = _slurm_name() or _torchrun_name()
    return zlib.crc32(shared.encode()) if shared else secrets.randbits(32)


def starts_again() -> bool:
    """Whether SLURM requeued this job, or torchrun started its processes once more."""
    return any(int(os.environ.get(f"{kind}_RESTART_COUNT") or 0) > 0 for kind in ("SLURM", "TORCHELASTIC"))


def _time_name() -> str:
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


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
        raise ValueError("give the processes one run folder and one seed: hydra.run.dir=logs/train/runs/NAME seed=0")
    from torch.distributed import TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    key = "lightning-classics run folder"
    if os.environ["RANK"] == "0" and not store.check([key]):
        store.set(key, _time_name())
    return store.get(key).decode()
