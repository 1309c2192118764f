"""Trains a network and tests it.

python -m src.train model=vgg11 data=cifar10 trainer.max_epochs=30
python -m src.train resume=latest
python -m src.train --help
"""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src import cli
from src.record import close_record, keep_overrides, print_config, print_results, restore_csv
from src.run import build_datamodule, build_model, register_resolvers

log = logging.getLogger(__name__)


def train(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Trains and tests what the config says.

    Returns:
        The last value of every logged metric, and the objects: cfg, datamodule, model, callbacks, logger, trainer.

    Raises:
        ValueError, FileNotFoundError, ...: the config asks for something that cannot be done.
        FloatingPointError: the loss is no longer a number.
    """
    import torch
    from hydra.utils import instantiate
    from lightning import seed_everything

    from src.callbacks.checkpoint import AtomicCheckpointIO, RunRecord

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for needless in (
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        ".*smaller than the logging interval",  # metrics are logged once an epoch
        ".*sync_dist=True",  # as sums over all processes
        ".*not supported by the model summary",  # its megabytes are those of float32
        ".*(have no `val_dataloader`|Total length of `list` across ranks is zero)",  # data.val_size=0
    ):
        warnings.filterwarnings("ignore", needless)
    register_resolvers()
    start = time.perf_counter()
    seed_everything(cfg.seed, workers=True, verbose=False)

    model = build_model(cfg, pretrained=cfg.resume is None and cfg.ckpt_path is None)
    datamodule: Any = build_datamodule(cfg)
    output = Path(cfg.paths.output_dir)
    record = RunRecord(output / "checkpoints", cfg.seed)
    callbacks = [instantiate(c, _convert_="all") for c in (cfg.callbacks or {}).values() if c is not None]
    logger = [instantiate(c, _convert_="all") for c in (cfg.logger or {}).values() if c is not None]
    trainer = instantiate(
        cfg.trainer,
        callbacks=[record, *callbacks],
        logger=logger,
        plugins=[AtomicCheckpointIO()],
        _convert_="all",
    )
    leave_out_empty_hooks(trainer.callbacks)
    datamodule.trainer = trainer
    datamodule.prepare_data()
    datamodule.setup("fit")
    if datamodule.val_set is None:
        train_without_validation(cfg, trainer)
    size = datamodule.image_size
    model.example_input_array = torch.zeros(1, 3, size, size)
    record.contents = {
        "config": OmegaConf.to_container(cfg, resolve=True),
        "classes": list(datamodule.classes),
        "preprocess": datamodule.preprocess.spec,
    }

    ckpt_path = cfg.ckpt_path
    if trainer.is_global_zero:
        print_config(cfg)
    if cfg.resume is not None:
        ckpt_path = str(Path(cfg.resume) / "checkpoints/last.ckpt")
        warnings.filterwarnings("ignore", ".*(Experiment logs|Checkpoint) directory .* exists and is not empty")
        if trainer.is_global_zero:
            restore_csv(logger, output, ckpt_path)
            keep_overrides(cfg, output)
    trainer.fit(model, datamodule, ckpt_path=ckpt_path)
    # A run that was stopped after its last epoch logs nothing more in `fit`.
    metrics = record.metrics | {name: float(value) for name, value in trainer.callback_metrics.items()}
    if cfg.test:
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        trainer.test(model, datamodule, ckpt_path=best or None, verbose=False)
        metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}

    objects = {
        "cfg": cfg, "datamodule": datamodule, "model": model,
        "callbacks": trainer.callbacks, "logger": logger, "trainer": trainer,
    }  # fmt: skip
    if trainer.is_global_zero and not trainer.fast_dev_run:
        seconds = record.earlier_seconds + time.perf_counter() - start
        print_results(close_record(output, metrics, objects, seconds), output)
    return metrics, objects


def leave_out_empty_hooks(callbacks: list[Any]) -> None:
    """Takes from each callback the hooks of a step that it does nothing in.

    Lightning calls whatever is callable, ten callbacks at six places of every step, and the calls of hooks left empty
    are some 5 % of a small network's step on a CPU.
    """
    from lightning.pytorch.callbacks import Callback

    for hook in ("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward",
                 "on_before_optimizer_step", "on_train_batch_end"):  # fmt: skip
        for callback in callbacks:
            if getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)


def train_without_validation(cfg: DictConfig, trainer: Any) -> None:
    """Takes out what watches validation metrics where there is no validation set: the last epoch is what counts."""
    from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

    if str(OmegaConf.select(cfg, "scheduler.monitor")).startswith("val/"):
        raise ValueError("this scheduler watches a validation metric, and data.val_size=0 leaves no validation set")
    for callback in list(trainer.callbacks):
        if not str(getattr(callback, "monitor", None)).startswith("val/"):
            continue
        if isinstance(callback, ModelCheckpoint):
            callback.monitor, callback.save_top_k = None, 0
        elif isinstance(callback, EarlyStopping):
            trainer.callbacks.remove(callback)
            log.warning("no early stopping: there is no validation set to watch (data.val_size=0)")


def main(cfg: DictConfig) -> float | None:
    metrics, objects = train(cfg)
    if cfg.trainer.fast_dev_run or cfg.optimized_metric is None:
        return None
    if cfg.optimized_metric not in metrics and objects["datamodule"].val_set is not None:
        raise ValueError(
            f"optimized_metric={cfg.optimized_metric} was not logged; there are {', '.join(sorted(metrics))}"
        )
    return metrics.get(cfg.optimized_metric)


if __name__ == "__main__":
    cli.run(main, "train")
