"""The first layer as a fixed whitening of the training images' patches."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Whitening(Callback):
    """Shows the network some training images before the training, to make its first layer from (`network.whiten`).

    They are evenly spaced in the training set, not augmented: every process and every resumed run shows the same.

    Args:
        images: how many.

    Raises:
        ValueError: the network has no such layer.
    """

    def __init__(self, images: int = 5000) -> None:
        self.images = images

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        network: Any = pl_module.network
        if not hasattr(network, "whiten"):
            raise ValueError(
                f"callbacks.whitening needs a network with a layer for it, which {type(network).__name__} has not: "
                "choose model=speedrun, or callbacks.whitening=null."
            )
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        count = min(self.images, len(data.train_set))
        chosen = [i * len(data.train_set) // count for i in range(count)]
        images, *_ = data.train_set.__getitems__(chosen)
        network.whiten(data.preprocess(images.cpu()))
