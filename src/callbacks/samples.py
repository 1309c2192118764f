"""Samples of a generator while it learns."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from src.callbacks.pictures import tensorboard_writer


class SampleSheet(Callback):
    """Draws samples after each epoch, always of the same noise: `samples_epoch_XXX.png` and TensorBoard.

    A row is a class; no random number of the training is drawn.

    Args:
        folder: where the files go.
        columns: samples of a class.
        rows: classes, at most.

    Raises:
        ValueError: the module has no `sample` (as `src.modules.gan.GAN` has).
    """

    def __init__(self, folder: str | Path, columns: int = 10, rows: int = 20) -> None:
        self.folder, self.columns, self.rows = Path(folder), columns, rows

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "sample"):
            raise ValueError(f"callbacks=samples is for a GAN: {type(pl_module).__name__} draws no samples.")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from src import figures

        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        rows = min(self.rows, trainer.datamodule.num_classes)  # type: ignore[attr-defined]
        images: Any = pl_module.sample(torch.arange(rows).repeat_interleave(self.columns))  # type: ignore[operator]
        sheet = figures.tiled(images.unflatten(0, (rows, self.columns)).numpy())
        figures.save_pixels(sheet, self.folder / f"samples_epoch_{trainer.current_epoch:03d}.png")
        if (writer := tensorboard_writer(trainer)) is not None:
            writer.add_image("samples", sheet, trainer.global_step, dataformats="HWC")
