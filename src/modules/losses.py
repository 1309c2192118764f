"""Losses that torch lacks."""

import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -1  # the label of a padding image, which counts nowhere


class CrossEntropy(nn.Module):
    """Cross-entropy, its labels smoothed in training alone (Szegedy et al. 2016, section 7).

    So `val/loss` and `test/loss` are the plain cross-entropy in nats, whatever a run trained with, and can be compared.
    """

    def __init__(self, label_smoothing: float = 0.0, ignore_index: int = IGNORE) -> None:
        super().__init__()
        self.label_smoothing, self.ignore_index = label_smoothing, ignore_index

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over images of logits (B, K) and labels, int64 (B,) or probabilities (B, K)."""
        smoothing = self.label_smoothing if self.training else 0.0
        return F.cross_entropy(logits, labels, ignore_index=self.ignore_index, label_smoothing=smoothing)
