"""An exponential moving average of the weights."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging

from src.modules.averaging import warmed_up_average


class EMA(WeightAveraging):
    """Keeps an average of the weights and buffers, which is what is validated, kept, tested and exported.

    Its decay grows with the steps (`warmed_up_average`).

    Args:
        decay: share of the average that a step keeps, in the long run; in [0, 1).
    """

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__(use_buffers=True, multi_avg_fn=warmed_up_average(decay))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # in a test it would put the weights that are not averaged in their place
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
