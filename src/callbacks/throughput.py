"""How many images a second the training takes in."""

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class Throughput(Callback):
    """Logs `train/images_per_s`: images of all processes by the time spent in training steps of the epoch.

    `images` and `train_seconds` count on where a resumed run went on.
    """

    def __init__(self) -> None:
        self.train_seconds = 0.0  # of all epochs so far
        self.images = 0
        self._start = 0.0  # of the epoch, later by what its validations took

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self._start = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # Lightning leaves it out when a run goes on in mid-epoch

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start += time.perf_counter() - self._validation_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = time.perf_counter() - self._start
        steps = trainer.fit_loop.epoch_loop.batch_progress.total.ready - self._done
        images = steps * trainer.datamodule.batch_size * trainer.world_size  # type: ignore[attr-defined]
        self.images += images
        self.train_seconds += seconds
        pl_module.log("train/images_per_s", images / seconds)

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "train_seconds": self.train_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images, self.train_seconds = state_dict["images"], state_dict["train_seconds"]
