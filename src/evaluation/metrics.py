"""Measures of a classifier's predictions.

Said once: images are float (B, C, S, S), probabilities float (N, K) with rows that sum to 1, labels int64 (N,).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import nll_loss, pad
from torchmetrics.functional import classification as tm


def views(images: Tensor, tta: str) -> Iterator[Tensor]:
    """The views of images (B, C, S, S) to average predictions over, beside the images themselves.

    "none" adds none, "flip" the mirrored images; "multicrop" also two diagonal shifts by 1/32 of the side (edges
    reflected) and their mirror images.
    """
    if tta == "none":
        return
    yield images.flip(-1)
    if tta == "multicrop":
        size = images.shape[-1]
        by = max(1, size // 32)  # pixels
        padded = pad(images, (by, by, by, by), mode="reflect")
        for start in (0, 2 * by):
            shifted = padded[..., start : start + size, start : start + size]
            yield shifted
            yield shifted.flip(-1)


def measure(probabilities: Tensor, labels: Tensor, classes: Sequence[str]) -> tuple[dict[str, float], pd.DataFrame]:
    """Metrics of predictions, and a data frame with one row a class.

    The metrics: nll (negative log-likelihood in nats), acc, acc_top5, the means over the classes that have images of
    precision, recall and f1, and ece, the expected calibration error (Guo et al. 2017, equation 3).
    """
    k = len(classes)
    # what each is of one class; its accuracy is its recall
    functions = {"accuracy": tm.multiclass_recall, "precision": tm.multiclass_precision, "recall": tm.multiclass_recall}
    frame = pd.DataFrame({"class": list(classes), "images": labels.bincount(minlength=k).numpy()})
    for name, function in {**functions, "f1": tm.multiclass_f1_score}.items():
        frame[name] = function(probabilities, labels, k, average="none").numpy()
        frame.loc[frame["images"] == 0, name] = np.nan
    metrics = {
        "nll": nll_loss(probabilities.clamp_min(torch.finfo(torch.float32).tiny).log(), labels),
        "acc": tm.multiclass_accuracy(probabilities, labels, k, average="micro"),
        "acc_top5": tm.multiclass_accuracy(probabilities, labels, k, average="micro", top_k=min(5, k)),
        **frame[["precision", "recall", "f1"]].mean(),
        "ece": tm.multiclass_calibration_error(probabilities, labels, k, n_bins=15),
    }
    return {name: float(value) for name, value in metrics.items()}, frame


def predictions(probabilities: Tensor, labels: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    """One row an image: its place in the split, label, prediction, confidence, and `p_<class>` for each class."""
    rows, names = probabilities.numpy(), np.array(classes)
    frame = pd.DataFrame({"label": names[labels.numpy()], "prediction": names[rows.argmax(axis=1)]})
    frame["confidence"] = rows.max(axis=1)
    frame = frame.join(pd.DataFrame(rows, columns=[f"p_{name}" for name in classes]))
    return frame.rename_axis("image").reset_index()
