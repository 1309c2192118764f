"""How a training came to know its images (Swayamdipta et al. 2020, "Dataset cartography"; Toneva et al. 2019).

Said once: N training images, by their positions in the split. What counts are the answers that the training itself
gave, to the images as they were augmented, by the weights of that moment.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def by_image(index: NDArray, confidence: NDArray, right: NDArray, *, size: int) -> tuple[NDArray, NDArray]:
    """One epoch's answers, in whatever order they were given, by image.

    Args:
        index: which image each was for (M,).
        confidence, right: the probability of the image's own label, and whether it was the largest (M,).
        size: N.

    Returns:
        confidence, float32 (N,), NaN for an image that was not shown, and right, bool (N,). For one that was shown more
        than once, as in a balanced epoch: the mean, and whether more than half of the answers were right.
    """
    shown, hits = np.bincount(index, minlength=size), np.bincount(index, right, size)
    total = np.bincount(index, confidence, size)
    mean = np.divide(total, shown, out=np.full(size, np.nan), where=shown > 0)
    return mean.astype(np.float32), 2 * hits > shown


def cartography(epochs: Iterable[tuple[int, NDArray, NDArray]], size: int) -> pd.DataFrame:
    """What epochs, each with its number and its answers `by_image`, say of each image.

    Returns:
        One row an image: image; epochs, in how many it was shown, of which is the rest; confidence and variability,
        mean and standard deviation of the probability of its label; correctness, the share of them in which it was
        right; forgetting, how often it was wrong after it had been right the time before; learnt, the first epoch in
        which it was right, NaN where there is none.
    """
    shown, hits, forgetting = np.zeros((3, size), int)
    sums, squares = np.zeros((2, size))
    learnt, known = np.full(size, np.nan), np.zeros(size, bool)
    for epoch, confidence, right in epochs:
        here = ~np.isnan(confidence)
        values = np.where(here, confidence, 0).astype(float)
        shown, hits, sums, squares = shown + here, hits + right, sums + values, squares + values**2
        forgetting = forgetting + (here & known & ~right)
        learnt[right & np.isnan(learnt)] = epoch
        known[here] = right[here]
    times = np.where(shown, shown, np.nan)
    mean = sums / times
    frame = pd.DataFrame({"image": np.arange(size), "epochs": shown, "confidence": mean})
    frame["variability"] = np.sqrt(np.maximum(squares / times - mean**2, 0))
    return frame.assign(correctness=hits / times, forgetting=forgetting, learnt=learnt)
