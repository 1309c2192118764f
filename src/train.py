"""Trains a network and tests it.

python -m src.train model=vgg11 data=cifar10 trainer.max_epochs=30
python -m src.train resume=latest
python -m src.train --help
"""

import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src import cli, errors
from src.data.official import look_for
from src.runs import record as records
from src.runs import told
from src.runs.build import build, build_each, build_model, normalise_as, register_resolvers
from src.runs.folder import CURVES, LAST, RunError, draw_seed, removed_unless_started, starts_again
from src.runs.run import load_checkpoint, resumed_config
from src.runs.trust import check_config
from src.runs.values import check_values

log = logging.getLogger(__name__)


def train(cfg: DictConfig, started: Callable[[], Any] | None = None) -> tuple[dict[str, float], dict[str, Any]]:
    """Trains and tests what the config says.

    Args:
        started: called when the training begins; what can be wrong with a config has been found by then.

    Returns:
        The last value of every logged metric, and the objects: cfg, datamodule, model, callbacks, logger, trainer.

    Raises:
        ValueError, FileNotFoundError, ...: the config asks for something that cannot be done.
        RunError: the checkpoint that it should go on from holds something else than a training's state.
        FloatingPointError: the loss is no longer a number.
    """
    register_resolvers()
    check_values(cfg, "train")
    look_for(cfg.data)

    import torch
    from lightning import seed_everything
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
    from lightning.pytorch.utilities.model_helpers import is_overridden

    from src.callbacks.checkpoint import AtomicCheckpointIO, RunRecord
    from src.modules.losses import class_weights

    cli.quieten()
    if "hydra" in cfg:  # composed with return_hydra_config=True: Hydra's own part is none of the run's
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    if cfg.trainer.precision == "fastest":  # decided here once: the checkpoints' config has the decision
        from src.callbacks.processor import fastest_precision

        cfg.trainer.precision = fastest_precision()
    drawn = cfg.seed is None
    if drawn:
        cfg.seed = draw_seed()
    if cfg.data.get("seed", 0) is None:
        cfg.data.seed = cfg.seed
    seed_everything(cfg.seed, workers=True, verbose=False)

    output = Path(cfg.paths.output_dir)
    record = RunRecord(output / "checkpoints", cfg.seed, started)
    logger = build_each(cfg.logger)
    callbacks = [record, *build_each(cfg.callbacks)]
    keeps = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    place = OmegaConf.select(cfg, "callbacks.model_checkpoint.dirpath")
    if place is not None and Path(place).resolve() != record.folder.resolve():
        raise ValueError(f"callbacks.model_checkpoint.dirpath={place} must be {record.folder}, where runs are opened")
    parts = {"callbacks": callbacks, "logger": logger, "plugins": [AtomicCheckpointIO()]}
    trainer = build(cfg.trainer, enable_checkpointing=keeps, **parts)
    spawns = isinstance(trainer.strategy.launcher, _MultiProcessingLauncher)
    if spawns and not keeps:
        raise ValueError("trainer.strategy=ddp_spawn needs callbacks.model_checkpoint, which brings its results back")
    if spawns:
        log.warning("the processes of ddp_spawn print no line for each epoch; those of trainer.strategy=ddp do")
    datamodule = build(cfg.data)
    datamodule.trainer = trainer
    datamodule.prepare_data()
    datamodule.setup("fit")
    images, labels = datamodule.examples("train", 2)
    datamodule.augment(images, labels.clamp(min=0), index=torch.arange(len(labels)))  # tells what is wrong with it
    cfg.data.num_classes = datamodule.num_classes  # which a data set may have counted
    check_network(cfg)
    if (weight := OmegaConf.select(cfg, "loss.weight")) is not None:
        cfg.loss.weight = class_weights(weight, datamodule.class_counts())
    resumes = cfg.resume is not None and (output / LAST).is_file()
    if cfg.ckpt_path is not None and not resumes:
        seen = load_checkpoint(Path(cfg.ckpt_path))["preprocess"]
        normalise_as(cfg, datamodule, seen.get("mean"), seen.get("std"))
    model = build_model(cfg, None if resumes or cfg.ckpt_path is not None else datamodule)
    drop_watchers(cfg, trainer, datamodule)
    if not keeps:
        log.warning("no checkpoint is kept, as callbacks.model_checkpoint is off: nothing can open or resume this run")
    if is_overridden("forward", model):  # which the summary measures
        image = torch.zeros(1, datamodule.channels, datamodule.image_size, datamodule.image_size)
        model.example_input_array = trainer.precision_plugin.convert_input(image)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    record.contents = {"config": config, "classes": list(datamodule.classes), "preprocess": datamodule.preprocess.spec}
    try:
        check_config(config, cfg.trusted)
    except RunError as error:
        log.warning("this run will train, but nothing will open or resume it: %s", error)
    if drawn and trainer.is_global_zero:
        log.info("seed=%d was drawn", cfg.seed)
    if trainer.is_global_zero:
        for line in told.chosen():
            log.info(line)
        for word in told.unheeded(cfg):
            log.warning("%s changes nothing: this model takes none", word)
        if late := told.too_late(cfg):
            log.warning(late)
        if OmegaConf.select(cfg, "extras.print_config"):
            told.print_config(config)

    if cfg.resume is not None and trainer.is_global_zero:
        record.started = partial(records.keep_overrides, cfg, output)
    start = str(output / LAST) if resumes else cfg.ckpt_path
    try:
        if resumes and trainer.is_global_zero:
            state = load_checkpoint(output / LAST)
            goes_on = trainer.max_steps == -1 or state["global_step"] < trainer.max_steps
            records.restore_csv(logger, output, state, goes_on)
        trainer.fit(model, datamodule, ckpt_path=start)
    except Exception as error:
        if start is None or record.stepped or errors.user_error(error) is not None:
            raise
        raise RunError(f"{start} has no state to go on from: {type(error).__name__}: {error}") from error
    if spawns and (output / LAST).is_file():
        records.take_over(trainer, load_checkpoint(output / LAST), logger, output)
    elif start is not None and not record.stepped and trainer.is_global_zero:
        ends = "the run had come to its trainer.max_epochs or max_steps, or early stopping had ended it"
        log.warning("no step was left to train: %s", ends)

    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    objects = {
        "cfg": cfg, "datamodule": datamodule, "model": model,
        "callbacks": trainer.callbacks, "logger": logger, "trainer": trainer,
    }  # fmt: skip
    writes = trainer.is_global_zero and not trainer.fast_dev_run
    results = records.describe(cfg, output, objects, metrics)
    if writes:  # whatever fails from here on, the training's result is kept
        records.write_results(output, results, record.seconds)
    if cfg.test and is_overridden("test_step", model):
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or str(output / LAST)
        trainer.test(model, datamodule, ckpt_path=best if keeps and Path(best).is_file() else None, verbose=False)
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
    if writes:
        data = {"data": datamodule.digests()}
        records.write_results(output, results, record.seconds, status="done", metrics=metrics, **data)
        records.log_hyperparameters(cfg, output, logger, metrics)
        draw_curves(output)
        told.print_results(results, output)
    return metrics, objects


def draw_curves(folder: Path) -> None:
    """Draws the metrics over the epochs as figures/curves.png, where there is a table of them."""
    from src import figures

    history = records.read_metrics(folder).select_dtypes("number").rename_axis("epoch").reset_index()
    if len(history.columns) > 1:
        figures.save(figures.curves(history, folder.name), folder / CURVES)


def check_network(cfg: DictConfig) -> None:
    """Raises ValueError where a network of ours is told of other images than the data set has.

    Warns of finetuning one of random weights.
    """
    ours = str(OmegaConf.select(cfg, "model.network._target_")).startswith("src.")
    for key in ("num_classes", "image_size", "channels") if ours else ():
        told, its = (OmegaConf.select(cfg, f"{place}.{key}") for place in ("model.network", "data"))
        if None not in (told, its) and told != its:
            raise ValueError(f"model.network.{key}={told} must be {its}, as data.{key}: leave it out")
    if ours and OmegaConf.select(cfg, "callbacks.finetune") and not (cfg.model.get("weights") or cfg.ckpt_path):
        log.warning("callbacks.finetune freezes a backbone of random weights: give it others, model.weights=imagenet")


def drop_watchers(cfg: DictConfig, trainer: Any, datamodule: Any) -> None:
    """Takes out what watches a metric that never comes, the last epoch is then what counts; and what lacks a logger."""
    from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint

    ends = trainer.max_epochs if trainer.max_epochs not in (None, -1) else math.inf
    comes = trainer.limit_val_batches > 0 and (trainer.check_val_every_n_epoch or 1) <= ends
    validates = comes and datamodule.size("val") > 0

    def never_comes(metric: Any) -> bool:
        return metric is None or (str(metric).startswith("val/") and not validates)

    monitor = OmegaConf.select(cfg, "scheduler.monitor", default="")
    if never_comes(monitor):
        reasons = "data.val_size=0, trainer.limit_val_batches=0 or too large a trainer.check_val_every_n_epoch"
        raise ValueError(f"scheduler.monitor={monitor or 'null'} never comes, as there is no validation: {reasons}")
    for callback in list(trainer.callbacks):
        if isinstance(callback, ModelCheckpoint) and never_comes(callback.monitor):
            callback.monitor, callback.save_top_k = None, 0
        elif isinstance(callback, EarlyStopping) and never_comes(callback.monitor):
            trainer.callbacks.remove(callback)
            log.warning("no early stopping: there is no %s to watch", callback.monitor or "optimized_metric")
        elif isinstance(callback, LearningRateMonitor) and not trainer.loggers:
            trainer.callbacks.remove(callback)
            log.warning("no curves and no learning rates are kept: there is no logger")


def main(cfg: DictConfig) -> float | None:
    if cfg.resume is None and starts_again() and Path(cfg.paths.output_dir, LAST).is_file():
        own = ("data.download", "data.mirror")  # the command line is the same as at the first start
        cfg = OmegaConf.create(resumed_config(cfg.paths.output_dir, cfg.paths.log_dir, cfg.trusted, own))
    with removed_unless_started(Path(HydraConfig.get().runtime.output_dir)) as started:
        metrics, objects = train(cfg, started)
    if cfg.trainer.fast_dev_run or cfg.optimized_metric is None:
        return None
    if cfg.optimized_metric not in metrics and objects["datamodule"].size("val"):
        known = ", ".join(sorted(metrics))
        log.warning("optimized_metric=%s was not logged; there are %s", cfg.optimized_metric, known)
    return metrics.get(cfg.optimized_metric)


if __name__ == "__main__":
    cli.run(main, "train", cli.go_on)
