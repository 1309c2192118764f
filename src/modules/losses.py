"""Losses that torch lacks.

Said once: logits float (B, K); labels int64 (B,) with -1 for a padding image, which counts nowhere, or float (B, K):
probabilities after MixUp, or zeros and ones of several labels at once. `weight` has one number for each of the K
classes, and the loss is the mean over images of the weighted terms. (torch divides by the sum of the weights of a
batch instead, so that its loss depends on which images share one.) Label smoothing is for training alone: `val/loss`
and `test/loss` can be compared, whatever a run trained with.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -1  # the label of a padding image


class CrossEntropy(nn.Module):
    """Cross-entropy, its labels smoothed in training (Szegedy et al. 2016, section 7)."""

    weight: Tensor | None

    def __init__(self, label_smoothing: float = 0.0, weight: Sequence[float] | None = None) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", None if weight is None else torch.tensor(weight).float(), persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.label_smoothing if self.training else 0.0
        options: Any = {"weight": self.weight, "ignore_index": IGNORE, "label_smoothing": smoothing}
        if self.weight is None:
            return F.cross_entropy(logits, labels, **options)
        return F.cross_entropy(logits, labels, reduction="sum", **options) / counted(labels).sum()

    def targets(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The labels as floats (B, K), smoothed in training; zeros in padding rows."""
        if labels.ndim == 1:
            labels = labels[:, None] == torch.arange(logits.shape[1], device=labels.device)
        targets = labels.to(logits.dtype).clamp(min=0)
        return targets.lerp(targets.mean(dim=1, keepdim=True), self.label_smoothing) if self.training else targets


class Focal(CrossEntropy):
    """Cross-entropy times (1 - p) ** gamma, p the probability of the label (Lin et al. 2017, equation 5)."""

    def __init__(self, gamma: float = 2.0, **options: Any) -> None:
        super().__init__(**options)
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        log_p = logits.float().log_softmax(dim=1)
        terms = (1 - log_p.exp()) ** self.gamma * -log_p * self.targets(log_p, labels)
        return (terms if self.weight is None else terms * self.weight).sum() / counted(labels).sum()


class BinaryCrossEntropy(CrossEntropy):
    """A yes or no for each class, the mean over classes: for several labels at once, or one (Wightman et al. 2021)."""

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        targets, counts = self.targets(logits, labels), counted(labels)
        terms = F.binary_cross_entropy_with_logits(logits, targets, self.weight, reduction="none")
        return (terms.mean(dim=1) * counts).sum() / counts.sum()


def counted(labels: Tensor) -> Tensor:
    """Which rows (B,) are images, not padding."""
    return labels.reshape(len(labels), -1)[:, 0] != IGNORE


def class_weights(weight: str | Sequence[float], counts: Tensor) -> list[float]:
    """The `weight` of a loss, scaled so that its mean over the training images is 1.

    Args:
        weight: "balanced", one over the number of images of each class, or a number for each class.
        counts: training images of each class (K,).

    Raises:
        ValueError: a class has no weight, or no image to be balanced by.
    """
    if weight == "balanced":
        if not counts.all():
            missing = (counts == 0).nonzero().flatten().tolist()
            raise ValueError(f"loss.weight=balanced: there is no training image of the classes {missing}.")
        values = 1 / counts.double()
    elif isinstance(weight, str) or len(weight) != len(counts) or min(weight) < 0 or max(weight) <= 0:
        raise ValueError(
            f"loss.weight={weight}: choose balanced or {len(counts)} numbers from 0 on, one for each class."
        )
    else:
        values = torch.tensor(weight, dtype=torch.float64)
    return (values * counts.sum() / (values * counts).sum()).tolist()
