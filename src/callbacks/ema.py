"""An exponential moving average of the weights."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class EMA(WeightAveraging):
    """Keeps an average of the weights and buffers, which is what is validated, kept, tested and exported.

    Its decay grows with the steps n as min(decay, (1 + n) / (10 + n)), so that the average of a short run does not
    hang on to the initial weights (as in TensorFlow's ExponentialMovingAverage).

    Args:
        decay: share of the average that a step keeps, in the long run.

    Raises:
        ValueError: the decay is not in [0, 1).
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"callbacks.ema.decay={decay} must be at least 0 and less than 1.")

        def average(averaged: list[Tensor], current: list[Tensor], steps: Tensor) -> None:
            kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
            get_ema_multi_avg_fn(kept)(averaged, current, steps)

        super().__init__(use_buffers=True, multi_avg_fn=average)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # in a test it would put the weights that are not averaged in their place
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
