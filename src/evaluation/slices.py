"""Which images a classifier is worst on: by class, and by what can be measured of the image."""

from collections.abc import Sequence
from operator import mul

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import pad

from src.evaluation.intervals import wilson

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
MOST, LEAST = 10, 10  # slices by one measure, and images in a slice


def appearance(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Brightness and sharpness (B, 2) of images (B, C, S, S) that were normalised by mean and deviation.

    Brightness is the mean luma, 0 to 1. Sharpness, which grows with detail and with contrast, is the variance of the
    luma's Laplacian (Pech-Pacheco et al. 2000; Pertuz et al. 2013 compare it with others); its mean is 0, as pixels are
    repeated at the border.
    """
    luma = LUMA if len(mean) == 3 else (1.0,)
    grey = torch.full_like(images[:, 0], sum(map(mul, luma, mean)), dtype=torch.float32)  # (B, S, S)
    for channel, weight in zip(images.unbind(1), map(mul, luma, std), strict=True):
        grey.add_(channel, alpha=weight)
    around, edges = pad(grey, (1, 1, 1, 1), mode="replicate"), -4 * grey
    for beside in (around[:, 2:, 1:-1], around[:, :-2, 1:-1], around[:, 1:-1, 2:], around[:, 1:-1, :-2]):
        edges += beside
    return torch.stack([grey.mean(dim=(1, 2)), edges.square().mean(dim=(1, 2))], dim=1)


def slices(predictions: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by class, and by confidence, brightness and sharpness in bins of equally many images.

    Returns:
        A row a slice: `by` what, which `slice`, images, accuracy, `low` and `high` of its 95 % interval (Wilson). First
        is the one that is surely bad, whose interval ends lowest; the index is the order by class or value.
    """
    right = predictions["label"] == predictions["prediction"]
    count = min(MOST, max(1, len(right) // LEAST))
    parts = [("class", str(name), each) for name, each in right.groupby(predictions["label"], sort=False)]
    for by in ("confidence", "brightness", "sharpness"):
        values = predictions[by].to_numpy()
        edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)))  # equal values stay in one bin
        for _, each in right.groupby(np.searchsorted(edges[1:-1], values)):
            inside = values[each.index]
            parts.append((by, f"{inside.min():.3g} to {inside.max():.3g}", each))
    rows = [(by, name, len(each), each.mean()) for by, name, each in parts]
    frame = pd.DataFrame(rows, columns=["by", "slice", "images", "accuracy"])
    low, high = wilson(frame["accuracy"] * frame["images"], frame["images"])
    return frame.assign(low=low, high=high).sort_values("high", kind="stable")
