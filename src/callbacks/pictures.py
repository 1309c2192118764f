"""What the network is, what it is shown and what it says, as pictures in TensorBoard."""

import warnings
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden

from src.modules.looking import looking_at


class TensorBoardPictures(Callback):
    """Adds the graph and a grid of augmented training images at the start, validation predictions at the end.

    And, once an epoch has shown what is logged, a layout for the tab of custom scalars: training and validation of each
    metric in one chart.

    Args:
        images: how many images a grid shows.
    """

    def __init__(self, images: int = 32) -> None:
        self.images = images
        self._laid_out = False

    def _lay_out(self, trainer: Trainer) -> None:
        names = {name.partition("/")[2]: name for name in trainer.callback_metrics if name.startswith("val/")}
        charts = {metric: ["Multiline", [f"train/{metric}$", f"{name}$"]] for metric, name in names.items()}
        if charts and not self._laid_out and (writer := tensorboard_writer(trainer)) is not None:
            writer.add_custom_scalars({"training and validation": charts})
            self._laid_out = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._lay_out(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step > 0 or batch_idx > 0 or (writer := tensorboard_writer(trainer)) is None:
            return
        shown = batch[0][: self.images].detach().float().cpu()  # (N, C, S, S), normalised
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.mean, data.std))
        writer.add_images("train/augmented", (shown * std + mean).clamp(0, 1), global_step=0)
        network: Any = getattr(pl_module, "network", pl_module)
        with looking_at(pl_module), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's own: TensorBoard knows no other way to draw a graph
            try:
                writer.add_graph(network, torch.zeros_like(batch[0][:1]))
            except Exception as error:  # tracing runs any network's code; the run is worth more than its picture
                warnings.warn(f"TensorBoard has no graph of this network: {error}", stacklevel=1)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from src import figures

        self._lay_out(trainer)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        answers = is_overridden("forward", pl_module)
        if (writer := tensorboard_writer(trainer)) is None or not data.size("val") or not answers:
            return
        images, labels = data.examples("val", self.images)
        if labels.ndim > 1 or not (labels >= 0).any():
            return  # several labels an image, or no image that can be read
        images, labels = images[labels >= 0], labels[labels >= 0]
        with looking_at(pl_module):
            shown = data.preprocess.to(pl_module.device)(images.to(pl_module.device))
            logits = pl_module(trainer.precision_plugin.convert_input(shown))
        classifies = isinstance(logits, torch.Tensor) and logits.shape == (len(images), len(data.classes))
        if not classifies:
            return
        probabilities = logits.softmax(dim=1).float().cpu().numpy()
        figure = figures.examples(images.numpy(), labels.numpy(), probabilities, data.classes, "Validation images")
        writer.add_image("val/predictions", figures.pixels(figure), trainer.global_step, dataformats="HWC")


def tensorboard_writer(trainer: Trainer) -> Any:
    """The TensorBoard writer, or None where there is none and on every process but the first."""
    loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
    return loggers[0].experiment if loggers and trainer.is_global_zero else None
