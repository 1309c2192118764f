"""Measures of a classifier's predictions.

Said once: images are float (B, C, S, S), probabilities float (N, K) with rows that sum to 1, labels int64 (N,). A
probability may be too small for a float, its logarithm is not.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from torch import Tensor
from torch.nn.functional import nll_loss, pad
from torchmetrics.functional import classification as tm

from src.evaluation.calibration import confidence_bins
from src.evaluation.intervals import wilson


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


def measure(
    log_probabilities: Tensor, labels: Tensor, classes: Sequence[str]
) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame]:
    """Metrics of predictions, a data frame with one row a class, and the bins of ece, see `confidence_bins`.

    The metrics: nll (negative log-likelihood in nats, of one meaning for all runs; a run's own `loss` may be smoothed,
    weighted or another one), brier (sum over classes of the squared error of the probabilities, 0 to 2: Brier 1950),
    acc, acc_low and acc_high (its 95 % interval, Wilson), acc_top5 (of more than five classes), the means over the
    classes that have images of precision, recall and f1, and ece, the expected calibration error (Guo et al. 2017,
    equation 3) of 15 bins.
    """
    k, probabilities = len(classes), log_probabilities.exp()
    confidence, guess = probabilities.max(dim=1)
    right, of_label = guess == labels, probabilities.gather(1, labels[:, None])[:, 0]
    low, high = wilson(int(right.sum()), len(right))
    bins = confidence_bins(confidence, right)
    # what each is of one class; its accuracy is its recall
    functions = {"accuracy": tm.multiclass_recall, "precision": tm.multiclass_precision, "recall": tm.multiclass_recall}
    frame = pd.DataFrame({"class": list(classes), "images": labels.bincount(minlength=k).numpy()})
    for name, function in {**functions, "f1": tm.multiclass_f1_score}.items():
        frame[name] = function(probabilities, labels, k, average="none").numpy()
        frame.loc[frame["images"] == 0, name] = np.nan
    top5 = {"acc_top5": tm.multiclass_accuracy(probabilities, labels, k, average="micro", top_k=5)} if k > 5 else {}
    metrics = {
        "nll": nll_loss(log_probabilities, labels),
        "brier": (probabilities.square().sum(dim=1) - 2 * of_label + 1).mean(),
        **{"acc": right.double().mean(), "acc_low": low, "acc_high": high},
        **top5,
        **frame[["precision", "recall", "f1"]].mean(),
        "ece": ((bins["accuracy"] - bins["confidence"]).abs() * bins["images"]).sum() / len(right),
    }
    return {name: float(value) for name, value in metrics.items()}, frame, bins


def predictions(
    image: Tensor, probabilities: Tensor, labels: Tensor, classes: Sequence[str], **measured: Tensor
) -> pd.DataFrame:
    """A row an image: its place in the split, label, prediction, confidence, what else was `measured`, `p_<class>`."""
    rows, names = probabilities.numpy(), np.array(classes)
    told = {"image": image, "label": names[labels.numpy()], "prediction": names[rows.argmax(axis=1)]}
    frame = pd.DataFrame({**told, "confidence": rows.max(axis=1), **measured})
    return frame.join(pd.DataFrame(rows, columns=[f"p_{name}" for name in classes]))
