"""The LightningModule of images with several labels at once, and an example of a task of one's own.

Batches are `(images, labels)`: images float (B, C, H, W); labels float (B, K) of zeros and ones, -1 in padding rows.
"""

from typing import Any

import torch
from torch import Tensor, nn

from src.modules.base import Step, Task
from src.modules.losses import BinaryCrossEntropy, counted


class MultiLabelClassifier(Task):
    """Trains and evaluates a network that answers yes or no for each of K labels.

    Logs `train/loss train/acc val/loss val/acc test/...`, the accuracy over all answers, and whatever metrics it is
    given; those that say something when most answers are no, such as the mean average precision.

    Args:
        network: maps images (B, C, H, W) to logits (B, K).
        loss: called with logits and labels, returns the mean over images; counts no padding.
        options: those of `Task`.
    """

    link: nn.Module = nn.Sigmoid()  # from logits to probabilities

    def __init__(self, network: nn.Module, optimizer: Any, *, loss: nn.Module | None = None, **options: Any) -> None:
        super().__init__(network, optimizer, **options)
        self.loss_function = loss if loss is not None else BinaryCrossEntropy()

    def step(self, batch: tuple[Tensor, Tensor], stage: str) -> Step:
        images, labels = batch
        logits = self(images)
        counts = counted(labels)
        loss = torch.where(counts.any(), self.loss_function(logits, labels), 0.0)  # a batch can be padding alone
        right = ((logits > 0) == (labels > 0.5)).float().mean(dim=1)
        return Step(loss, counts.sum(), {"acc": (right * counts).sum()}, logits.detach())
