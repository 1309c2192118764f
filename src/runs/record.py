"""What a training leaves in its run folder besides its weights, and who reads it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.runs.folder import (
    CONFIG,
    HYDRA,
    METRICS,
    OVERRIDES,
    RESULTS,
    RunError,
    read_config,
    read_table,
    read_yaml,
    write_json,
    write_whole,
)

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

COSTS = ("parameters", "seconds", "images_per_s", "epochs", "matmul_gflops", "utilisation")  # of `results.json`
VERSIONS = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "tensorboard")


def read_results(folder: Path) -> dict[str, Any]:
    """What `results.json` says; empty where there is none.

    Raises:
        RunError: the file is malformed.
    """
    path = folder / RESULTS
    try:
        results = json.loads(path.read_text()) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is no JSON file: {error}") from error
    if not isinstance(results, dict) or (results and not isinstance(results.get("metrics"), dict)):
        raise RunError(f"{path} is no record of a run: it has no metrics")
    return results


def read_numbers(folder: Path) -> dict[str, float] | None:
    """All numbers of a run that came to its end, by name; None for any other run.

    The metric by which the best checkpoint was chosen counts as it was there, any other one as it was at the end;
    what `COSTS` names stands beside the metrics.
    """
    results = read_results(folder)
    if results.get("status") != "done":
        return None
    numbers = {**results["metrics"], **{name: results.get(name) for name in COSTS}}
    if best := results.get("best"):
        numbers[best["metric"]] = best["value"]
    return {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float))}


def read_metrics(folder: Path) -> pd.DataFrame:
    """The training and validation metrics in `csv/metrics.csv`: a row an epoch, indexed by it, a column a metric.

    Without columns where there is no file, or no epoch in it yet. A last line that is half written is left out.

    Raises:
        RunError: the file is malformed.
    """
    import pandas as pd

    path = folder / METRICS
    text = path.read_text() if path.is_file() else ""
    text = text[: text.rfind("\n") + 1]
    try:
        frame = read_table(io.StringIO(text)) if text else pd.DataFrame()
        if "epoch" not in frame:
            return pd.DataFrame()
        frame["epoch"] = frame["epoch"].bfill()  # the learning rate is written before its epoch
        names = [name for name in frame.columns if name not in ("epoch", "step") and not name.startswith("test/")]
        frame = frame[["epoch", *names]].dropna(how="all", subset=names).dropna(subset="epoch")
        return frame.astype({"epoch": int}).groupby("epoch").first()
    except ValueError as error:  # of which pandas' ParserError is one
        raise RunError(f"{path} is no table of metrics: {error}") from error


def restore_csv(loggers: list[Any], folder: Path, checkpoint: dict[str, Any], goes_on: bool = True) -> None:
    """Gives the CSV logger the rows that a run had up to a checkpoint of it; it starts empty otherwise.

    Args:
        goes_on: whether steps are left, which an epoch that was cut short is measured over anew.
    """
    from lightning.pytorch.loggers import CSVLogger

    ended = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"]
    last = checkpoint["global_step"] - 1

    def stays(row: dict[str, str]) -> bool:
        trained = any(value for name, value in row.items() if name.startswith("train/"))
        cut = goes_on and trained and int(row["step"]) == last and int(row["epoch"]) >= ended
        return int(row["step"]) <= last and not cut

    for logger in loggers:
        if isinstance(logger, CSVLogger) and (path := folder / METRICS).is_file():
            with path.open(newline="") as file:
                rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file) if stays(row)]
            logger.experiment.metrics = rows
            logger.save()


def read_choices(folder: Path) -> dict[str, str]:
    """What a run chose of each group of configs; empty where that is on no record."""
    hydra = (read_yaml(folder / HYDRA) or {}).get("hydra") or {}
    return hydra.get("runtime", {}).get("choices", {})


def read_overrides(folder: Path) -> list[str]:
    """The overrides of a run's command line, of all its starts."""
    return list(read_yaml(folder / OVERRIDES) or [])


def keep_overrides(cfg: DictConfig, folder: Path) -> None:
    """Adds the overrides of a resumed run to those of its start, and to its config, which is otherwise as it was."""
    import yaml
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    more = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    more = [override for override in more if not override.startswith("resume=")]
    config = read_config(folder)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    for key in (override.lstrip("+~").partition("=")[0] for override in more):
        *above, last = key.split(".")
        old, new = config, plain
        for name in above:
            if not isinstance(old.get(name), dict):  # an interpolation, which stays one no longer
                last = name
                break
            old, new = old[name], new[name]
        old[last] = new.get(last)
    write_whole(folder / OVERRIDES, yaml.safe_dump([*read_overrides(folder), *more]))
    write_whole(folder / CONFIG, yaml.safe_dump(config, sort_keys=False))


def take_over(trainer: Any, checkpoint: dict[str, Any], loggers: list[Any], folder: Path) -> None:
    """Gives this process what the processes of `trainer.strategy=ddp_spawn`, which have ended, knew of the training.

    Args:
        checkpoint: the contents of the run's last.
    """
    for callback in trainer.callbacks:
        if callback.state_key in checkpoint["callbacks"]:
            callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    trainer.fit_loop.epoch_progress.current.completed = checkpoint["epoch"] + 1
    restore_csv(loggers, folder, checkpoint)  # the test's processes would begin the file anew


def describe(cfg: DictConfig, folder: Path, objects: dict[str, Any], metrics: dict[str, float]) -> dict[str, Any]:
    """What `results.json` says of a training that came to its end, before its test.

    Args:
        objects: as `train` returns them.
        metrics: last value of every metric.
    """
    from src.callbacks.throughput import Throughput

    trainer = objects["trainer"]
    throughput = next((c for c in objects["callbacks"] if isinstance(c, Throughput) and c.images), None)
    return {
        "status": "trained",
        "metrics": metrics,
        "best": _best(trainer.checkpoint_callback, folder),
        "epochs": trainer.current_epoch,
        "seconds": None,
        "train_seconds": round(throughput.train_seconds, 3) if throughput else None,
        "images_per_s": round(throughput.images / throughput.train_seconds, 1) if throughput else None,
        **_utilisation(throughput, trainer.world_size),
        "parameters": sum(p.numel() for p in getattr(objects["model"], "network", objects["model"]).parameters()),
        "seed": cfg.seed,
        "tags": list(cfg.tags or []),
        "overrides": read_overrides(folder),
        "command": shlex.join(["python", *entry_point(), *read_overrides(folder)]),
        "device": _device(trainer),
        "precision": trainer.precision,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "git_commit": _git_commit(),
    }


def entry_point() -> list[str]:
    """What Python was asked to run: `-m src.train`, or a file."""
    spec = sys.modules["__main__"].__spec__
    return [sys.argv[0]] if spec is None else ["-m", spec.name]


def write_results(folder: Path, results: dict[str, Any], seconds: float, **changes: Any) -> None:
    """Writes `results.json` after `changes` to it; `seconds` are those of all that a resumed run took."""
    results.update(changes, seconds=round(seconds, 3))
    write_json(folder / RESULTS, results)


def log_hyperparameters(cfg: DictConfig, folder: Path, loggers: list[Any], metrics: dict[str, float]) -> None:
    """Fills the HPARAMS tab of TensorBoard: what distinguishes runs, and their final metrics."""
    from lightning.pytorch.loggers import TensorBoardLogger

    names = sorted((name for name in metrics if "/" in name), key=lambda name: name.startswith("train/"))
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            final = {f"hp/{name}": metrics[name] for name in names}  # of which it shows the first five
            logger.log_hyperparams(_hyperparameters(cfg, folder), final)
            logger.save()


def _best(checkpoint_callback: Any, folder: Path) -> dict[str, Any] | None:
    import torch

    path = getattr(checkpoint_callback, "best_model_path", "")
    # There is none of that name where no epoch was better than those of the run that ckpt_path is of.
    if not Path(path).is_file() or checkpoint_callback.best_model_score is None:
        return None
    return {
        "metric": checkpoint_callback.monitor,
        "mode": checkpoint_callback.mode,
        "value": float(checkpoint_callback.best_model_score),
        "epoch": torch.load(path, weights_only=True, mmap=True)["epoch"],
        "path": str(Path(path).resolve().relative_to(folder.resolve())),
    }


def _utilisation(throughput: Any, world_size: int) -> dict[str, float | None]:
    """The speed of matrix products, and the share of it that the network's FLOPs needed; None where not known."""
    if throughput is None or 0 in (throughput.flops, throughput.peak):
        return {"matmul_gflops": None, "utilisation": None}
    share = round(throughput.flops / (throughput.train_seconds * world_size * throughput.peak), 4)
    return {"matmul_gflops": round(throughput.peak / 1e9, 1), "utilisation": share}


def _device(trainer: Any) -> str:
    import torch

    device = trainer.strategy.root_device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        found = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
        name = f"{found[1] if found else platform.machine()}, {torch.get_num_threads()} threads"
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"


def _git_commit() -> str | None:
    """The commit of the code, with `+` behind it where files differ from it; None outside a repository."""

    def git(*arguments: str) -> str:
        options: Any = {"capture_output": True, "text": True, "check": True, "cwd": Path(__file__).parent}
        return subprocess.run(["git", *arguments], **options).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _hyperparameters(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """The chosen configs, and every plain value of the training's sections, flat."""
    import pandas as pd
    from omegaconf import OmegaConf

    choices = read_choices(folder)
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    sections = {name: dict(plain.get(name) or {}) for name in ("optimizer", "scheduler", "data", "model")}
    for section, name in itertools.product(sections.values(), ("optimizer", "scheduler", "root", "mirror", "download")):
        section.pop(name, None)  # copies of sections, and places
    sections["trainer"] = {key: plain["trainer"].get(key) for key in ("max_epochs", "precision", "devices")}
    flat: Any = pd.json_normalize(sections).to_dict("records")[0]
    named = {key: value for key, value in flat.items() if isinstance(value, (int, float, str)) and "._" not in key}
    return {**{name: choices[name] for name in sections if name in choices}, **named, "seed": cfg.seed}
