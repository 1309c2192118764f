"""What the network is, what it is shown and what it says, as pictures in TensorBoard."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor


class TensorBoardPictures(Callback):
    """Adds the graph and a grid of augmented training images at the start, validation predictions at the end.

    Args:
        images: how many images a grid shows.
    """

    def __init__(self, images: int = 32) -> None:
        self.images = images

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > 0 or batch_idx > 0:
            return
        writer = _writer(trainer)
        if writer is None:
            return
        shown = batch[0][: self.images].detach().float().cpu()  # (N, 3, S, S), normalised
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (data.mean, data.std))
        writer.add_images("train/augmented", (shown * std + mean).clamp(0, 1), global_step=0)
        _add_graph(writer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from src import figures

        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        writer = _writer(trainer)
        if writer is None or data.val_set is None:
            return
        chosen = torch.linspace(0, len(data.val_set) - 1, min(self.images, len(data.val_set))).long()
        images, labels = data.val_set.images[chosen], data.val_set.labels[chosen]
        probabilities = _probabilities(pl_module, data.preprocess, images)
        figure = figures.examples(
            images.cpu().numpy(),
            labels.cpu().numpy(),
            probabilities.numpy(),
            data.classes,
            "Validation images",
        )
        writer.add_image("val/predictions", figures.pixels(figure), trainer.global_step, dataformats="HWC")


def _writer(trainer: Trainer) -> Any:
    """The TensorBoard writer, or None where there is none and on every process but the first."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


@torch.no_grad()
def _probabilities(pl_module: LightningModule, preprocess: Any, images: Tensor) -> Tensor:
    """Probabilities (N, K) of uint8 images (N, 3, H, W), on the CPU; leaves the mode as it was."""
    training = pl_module.training
    pl_module.eval()
    logits = pl_module(preprocess.to(pl_module.device)(images.to(pl_module.device)))
    pl_module.train(training)
    return logits.softmax(dim=1).float().cpu()


def _add_graph(writer: Any, pl_module: LightningModule) -> None:
    training = pl_module.training
    example: Any = pl_module.example_input_array
    pl_module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's own: TensorBoard knows no other way to draw a graph
        try:
            writer.add_graph(pl_module.network, example.to(pl_module.device))
        except Exception as error:  # tracing runs any network's code; the run is worth more than its picture
            warnings.warn(f"TensorBoard has no graph of this network: {error}", stacklevel=1)
    pl_module.train(training)
