"""Lookahead: slow weights that follow the fast ones and pull them back."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from src.modules.averaging import real_numbers


class Lookahead(Callback):
    """Every few steps the weights go part of the way from where they were (Zhang et al. 2019, algorithm 1).

    The part that is held back grows with the training as in hlb-CIFAR10: decay^every (step / steps)^power, so that
    the beginning is free and the end is an average. Buffers such as the statistics of batch norms go with them. The
    last step ends on the slow weights.

    Args:
        every: optimizer steps between two updates.
        decay: share of the slow weights that a step keeps, at the end of the training.
        power: how late the decay comes.

    Raises:
        ValueError: the length of the training is not known.
    """

    def __init__(self, every: int = 5, decay: float = 0.95, power: float = 3.0) -> None:
        self.every, self.decay, self.power = every, decay, power
        self.slow: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steps = trainer.estimated_stepping_batches
        if self.steps == float("inf"):
            raise ValueError("callbacks=lookahead must know where training ends: set trainer.max_epochs or max_steps.")
        fast = real_numbers(pl_module)
        self.slow = {name: self.slow.get(name, value).to(value.device, copy=True) for name, value in fast.items()}
        self.updated = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        last = step == self.steps
        if step == self.updated or not (last or step % self.every == 0):
            return
        self.updated = step
        kept = 1.0 if last else self.decay**self.every * (step / self.steps) ** self.power
        for name, value in real_numbers(pl_module).items():
            value.copy_(self.slow[name].lerp_(value, 1 - kept))

    def state_dict(self) -> dict[str, Any]:
        return {"slow": self.slow}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.slow = state_dict["slow"]
