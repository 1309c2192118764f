"""What a training leaves behind in its run folder and on the screen."""

from __future__ import annotations

import csv
import json
import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

VERSIONS = ("torch", "torchvision", "lightning", "hydra-core", "torchmetrics", "tensorboard")


def print_config(cfg: DictConfig) -> None:
    """Prints the resolved config as YAML, in colour on a terminal."""
    from rich import print as rich_print
    from rich.syntax import Syntax

    rich_print(Syntax(OmegaConf.to_yaml(cfg, resolve=True).rstrip(), "yaml", background_color="default"))


def close_record(output: Path, metrics: dict[str, float], objects: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Writes `results.json`, and the HPARAMS tab of TensorBoard; returns what `results.json` says.

    Args:
        metrics: last value of every metric.
        objects: as `train` returns them.
        seconds: from the start of the training to the end of the test, over all that a resumed run took.
    """
    from lightning.pytorch.loggers import TensorBoardLogger

    from src.callbacks.throughput import Throughput

    cfg, trainer, model = objects["cfg"], objects["trainer"], objects["model"]
    throughput = next((c for c in objects["callbacks"] if isinstance(c, Throughput) and c.images), None)
    results = {
        "status": "done",
        "metrics": metrics,
        "best": _best(trainer.checkpoint_callback, output),
        "epochs": trainer.current_epoch,
        "seconds": round(seconds, 3),
        "train_seconds": round(throughput.train_seconds, 3) if throughput else None,
        "images_per_s": round(throughput.images / throughput.train_seconds, 1) if throughput else None,
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "seed": cfg.seed,
        "tags": list(cfg.tags),
        "overrides": _overrides(output),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "device": _device(trainer),
        "precision": trainer.precision,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "git_commit": _git_commit(),
    }
    for logger in objects["logger"]:
        if isinstance(logger, TensorBoardLogger):
            final = {f"hp/{name}": value for name, value in metrics.items() if "/" in name}
            logger.log_hyperparams(_hyperparameters(cfg, output), final)
            logger.save()
    write_whole(output / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def print_results(results: dict[str, Any], output: Path) -> None:
    """One table of the final metrics, then where the run is and how to watch it."""
    from rich import print as rich_print
    from rich.table import Table

    metrics = results["metrics"]
    stages = [stage for stage in ("train", "val", "test") if f"{stage}/loss" in metrics]
    table = Table("", *stages)
    for name, form in (("loss", ".4f"), ("acc", ".2%"), ("acc_top5", ".2%")):
        cells = [format(metrics[key], form) if (key := f"{stage}/{name}") in metrics else "" for stage in stages]
        table.add_row(name, *cells)
    print(f"{results['parameters']:,} parameters, {results['epochs']} epochs, {results['seconds']:.0f} s")
    rich_print(table)
    if results["best"]:
        best = results["best"]
        print(f"best {best['metric']} {best['value']:.4f} in epoch {best['epoch']} ({best['path']})")
    print(f"run folder: {output}\ntensorboard --logdir {output}")


def restore_csv(loggers: list[Any], output: Path, ckpt_path: str) -> None:
    """Gives the CSV logger the rows that the resumed run had when `ckpt_path` was saved; it starts empty otherwise."""
    from lightning.pytorch.loggers import CSVLogger

    from src.run import load_checkpoint

    path = output / "csv/metrics.csv"
    logger = next((logger for logger in loggers if isinstance(logger, CSVLogger)), None)
    if logger is None or not path.is_file():
        return
    steps = load_checkpoint(Path(ckpt_path))["global_step"]
    with path.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file) if int(row["step"]) < steps]
    logger.experiment.metrics = rows
    logger.save()


def keep_overrides(cfg: DictConfig, output: Path) -> None:
    """Writes the config of a resumed run over the saved one, and adds its overrides to those of the start."""
    from hydra.core.hydra_config import HydraConfig

    overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith("++resume=")]
    write_whole(output / ".hydra/overrides.yaml", OmegaConf.to_yaml([*_overrides(output), *overrides]))
    write_whole(output / ".hydra/config.yaml", OmegaConf.to_yaml(cfg))


def write_whole(path: Path, text: str) -> None:
    """Writes a file under its name only once it is whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def _best(checkpoint_callback: Any, output: Path) -> dict[str, Any] | None:
    path = getattr(checkpoint_callback, "best_model_path", "")
    if not path or checkpoint_callback.best_model_score is None:
        return None
    return {
        "metric": checkpoint_callback.monitor,
        "value": float(checkpoint_callback.best_model_score),
        "epoch": int(Path(path).stem.removeprefix("epoch_")),
        "path": str(Path(path).resolve().relative_to(output.resolve())),
    }


def _overrides(output: Path) -> list[str]:
    path = output / ".hydra/overrides.yaml"
    return list(OmegaConf.load(path)) if path.is_file() else []


def _device(trainer: Any) -> str:
    import torch

    device = trainer.strategy.root_device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.processor() or platform.machine()} {device.type}, {torch.get_num_threads()} threads"
    return name if trainer.world_size == 1 else f"{trainer.world_size} x {name}"


def _git_commit() -> str | None:
    """The commit of the code, with `+` behind it where files differ from it; None outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _hyperparameters(cfg: DictConfig, output: Path) -> dict[str, Any]:
    """What distinguishes runs, flat: the chosen configs, and every plain value of the training's sections."""
    path = output / ".hydra/hydra.yaml"
    choices = OmegaConf.select(OmegaConf.load(path), "hydra.runtime.choices") if path.is_file() else {}
    flat = {group: choices[group] for group in ("model", "data", "optimizer", "scheduler") if group in choices}

    def walk(node: Any, prefix: str) -> None:
        for key, value in node.items():
            if isinstance(value, dict):
                walk(value, f"{prefix}{key}.")
            elif isinstance(value, (int, float, str)) and not str(key).startswith("_"):
                flat[prefix + str(key)] = value

    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    for section in ("optimizer", "scheduler", "data", "model"):
        node = {
            k: v for k, v in plain[section].items() if k not in ("optimizer", "scheduler", "root", "mirror", "download")
        }
        walk(node, f"{section}.")
    for key in ("max_epochs", "precision", "devices"):
        flat[f"trainer.{key}"] = plain["trainer"][key]
    return {**flat, "seed": cfg.seed}
