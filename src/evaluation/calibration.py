"""Whether a classifier is as often right as it says, and one temperature that makes it so.

Said once: log-probabilities are float (N, K), whose exponentials sum to 1 over a row; labels int64 (N,).
"""

import math

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from src.evaluation.intervals import wilson

TEMPERATURES = (0.05, 20.0)  # the least and the greatest that is fitted


class Temperature(nn.Module):
    """Divides logits by a number above 0: above 1 it makes probabilities more even, and never changes their order."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, logits: Tensor) -> Tensor:
        return logits / self.value


def fit_temperature(log_probabilities: Tensor, labels: Tensor) -> float | None:
    """The temperature of least negative log-likelihood (Guo et al. 2017, section 4.2).

    Log-probabilities do as well as logits: they differ by a constant an image. None where there is no minimum within
    `TEMPERATURES`, as of a network that is right on all images, or no better than chance.
    """
    from scipy.optimize import minimize_scalar

    logits, (low, high) = log_probabilities.double(), map(math.log, TEMPERATURES)

    def nll(log_temperature: float) -> float:
        return cross_entropy(logits / math.exp(log_temperature), labels).item()

    found = minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    return math.exp(found.x) if min(found.x - low, high - found.x) > 1e-3 else None


def confidence_bins(confidence: Tensor, right: Tensor, bins: int = 15) -> pd.DataFrame:
    """Equally wide bins (from, to] of the confidence: images, their mean confidence, their accuracy and its interval.

    Args:
        confidence: (N,) probability of the predicted class.
        right: (N,) whether it is the true one.
    """
    which = (confidence.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)
    images = which.bincount(minlength=bins)
    sums = (which.bincount(each.double(), minlength=bins) for each in (confidence, right))
    mean, accuracy = (each / images for each in sums)  # not a number where there are no images
    edges = torch.arange(bins + 1, dtype=torch.float64) / bins
    frame = {"from": edges[:-1], "to": edges[1:], "images": images, "confidence": mean, "accuracy": accuracy}
    low, high = wilson((accuracy * images).numpy(), images.numpy())
    return pd.DataFrame({name: values.numpy() for name, values in frame.items()}).assign(low=low, high=high)
