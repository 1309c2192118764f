"""How far an accuracy can be trusted: intervals, and deviations over images and over runs."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95


def wilson(right: ArrayLike, number: ArrayLike) -> tuple[Any, Any]:
    """The ends of the 95 % interval of the share `right` of `number`, of any shape (Wilson 1927); NaN where it is 0."""
    from scipy.special import ndtri  # the normal quantile; scipy.stats takes three times as long to import

    z, number = ndtri((1 + LEVEL) / 2), np.asarray(number, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.asarray(right) / number
        centre = share + z**2 / (2 * number)
        half = z * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
        low, high = ((centre + sign * half) / (1 + z**2 / number) for sign in (-1, 1))
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


def deviations(right: NDArray[np.bool_]) -> dict[str, float]:
    """What the finite number of test images does to the accuracy of runs that differ by seed alone.

    Args:
        right: (R, N), whether each of R runs is right on each of N images.

    Returns:
        images: N.
        sampling: the deviation that other N images would bring, sqrt(p (1 - p) / N) of the mean accuracy p. It is also
            the most that the images can explain of the deviation between runs.
        explained: where R > 1, what they do explain of it, were the errors of a run independent of each other.
        beyond: what is left, the deviation between runs on the whole distribution that the images are drawn from.
            Jordan 2023 (arXiv 2304.01910, theorem 2) has its variance as N / (N - 1) times what the variance between
            runs exceeds the sum of the images' own variances / N^2 by. Here all variances are sample variances, so that
            the estimate is unbiased for any number of runs; where it is negative, it counts as 0.
    """
    runs, number = right.shape
    share = right.mean()
    found = {"images": float(number), "sampling": float(np.sqrt(share * (1 - share) / number))}
    if runs > 1:
        explained = right.var(axis=0, ddof=1).sum() / number**2
        excess = right.mean(axis=1).var(ddof=1) - explained
        beyond = excess * number / max(number - 1, 1)
        found |= {"explained": float(np.sqrt(explained)), "beyond": float(np.sqrt(max(0.0, beyond)))}
    return found
