"""What a training says of its own images, epoch by epoch: which are easy, ambiguous, hard, or forgotten."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray

from src.evaluation.dynamics import by_image, cartography
from src.modules.base import of_each_process
from src.modules.classifier import ImageClassifier
from src.runs.folder import whole, write_csv


class Dynamics(Callback):
    """Keeps the probability of each training image's own label, from the logits of the training steps.

    Each epoch leaves dynamics/epoch_XXX.npz: what `src.evaluation.dynamics.by_image` returns. The end leaves
    dynamics.csv: the columns of `cartography` and the label, an image by its position in the train split; and a figure
    of it, the data map. A checkpoint within an epoch has what there is of that epoch.

    Args:
        folder: the run folder.

    Raises:
        ValueError: images have no label of their own, as there are several of them, or MixUp or CutMix mix them.
    """

    needs_index = True

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.parts: list[Any] = []  # of this epoch: index, confidence, right, each (B,)
        if not isinstance(pl_module, ImageClassifier):
            raise ValueError(f"callbacks=dynamics is for a classifier to one label, not {type(pl_module).__name__}.")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        images, labels = data.examples("train", 2)
        if data.augment(images, labels, index=torch.arange(len(labels)))[1].ndim > 1:
            raise ValueError("callbacks=dynamics is for unmixed labels: leave MixUp and CutMix out of data.augment.")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer, trainer.current_epoch - 1)  # which a checkpoint of its validation had not closed

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        logits, labels, index = outputs["output"], batch[1], trainer.datamodule.index  # type: ignore[attr-defined]
        if index is None:
            raise ValueError("callbacks=dynamics: the data module was set up before it had this trainer.")
        confidence = logits.float().softmax(dim=1).gather(1, labels[:, None])[:, 0]
        self.parts.append((index, confidence, logits.argmax(dim=1) == labels))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close(trainer, trainer.current_epoch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from src import figures

        self._close(trainer, trainer.current_epoch - 1)
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        frame = cartography(self._epochs(trainer.current_epoch, data.size("train")), data.size("train"))
        if not (epochs := frame["epochs"].max()):
            return
        frame.insert(1, "label", np.array(data.classes)[data.labels("train").numpy()])
        write_csv(self.folder / "dynamics.csv", frame, "%.6g")
        title = f"{type(pl_module.network).__name__} on {type(data).__name__}, {epochs} epochs"
        columns = (frame[name] for name in ("variability", "confidence", "correctness"))
        figures.save(figures.data_map(*columns, title=title), self.folder / "figures/data_map.png")

    def _file(self, epoch: int) -> Path:
        return self.folder / f"dynamics/epoch_{epoch:03d}.npz"

    def _epochs(self, ended: int, size: int) -> Iterator[tuple[int, NDArray, NDArray]]:
        """Those that ended, each with its number; none of other images, as data.limit chose them before a resume."""
        for epoch in filter(lambda epoch: self._file(epoch).is_file(), range(ended)):
            with np.load(self._file(epoch)) as kept:
                if len(kept["right"]) == size:
                    yield epoch, kept["confidence"], kept["right"]

    def _gathered(self) -> list[torch.Tensor]:
        """The parts of all processes, joined; empty where there are none."""
        mine = [torch.cat(column).cpu() for column in zip(*self.parts, strict=True)]
        return [torch.cat(columns) for columns in zip(*filter(None, of_each_process(mine)), strict=True)]

    def _close(self, trainer: Trainer, epoch: int) -> None:
        gathered, self.parts = self._gathered(), []
        if gathered and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            size = trainer.datamodule.size("train")  # type: ignore[attr-defined]
            confidence, right = by_image(*(part.numpy() for part in gathered), size=size)
            with whole(self._file(epoch)) as partial:
                np.savez(partial, confidence=confidence, right=right)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["dynamics"] = self._gathered()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        kept = [part.to(trainer.strategy.root_device) for part in checkpoint.get("dynamics", ())]
        self.parts = [kept] if kept and trainer.is_global_zero else []
