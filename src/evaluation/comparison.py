"""Classifiers compared image by image: all have seen the same images, in the same order."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.evaluation.intervals import LEVEL

DRAWS = 10_000
TOLERANCE = 0.01  # of the brightness, which is 0 to 1: more than the rounding of bfloat16


def other_images(first: pd.DataFrame, second: pd.DataFrame, columns: Sequence[str] = ("label", "brightness")) -> str:
    """How two tables of predictions are of other images, "" if they are of the same: by labels and brightness."""
    if len(first) != len(second):
        return f"{len(first):,} and {len(second):,} images"
    for name in columns:
        one, other = first[name], second[name]
        differ = (one != other) if name == "label" else ~((one - other).abs() <= TOLERANCE)
        if differ.any():
            i = int(np.argmax(differ))
            return f"{differ.sum():,} of {len(one):,} have another {name}, the first is image {i}: {one[i]}, {other[i]}"
    return ""


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided p of McNemar's exact test (1947), of how many images only the one and only the other is right on."""
    from scipy.stats import binomtest

    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def resampled(right: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
    """Bootstrapped accuracies of G configurations, (DRAWS, G), the images of a draw the same for all.

    Images and runs are drawn independently of each other (Owen 2007, "The pigeonhole bootstrap"), which is a little
    conservative. The weights of R runs are stretched by sqrt(R / (R - 1)) (Rao and Wu 1988): else the variance between
    two runs would come out at half its size. A single run is taken as it is: nothing tells how others would be.

    Args:
        right: of each configuration (R, N), whether its runs are right on each image.
    """
    generator = np.random.default_rng(0)
    # Images that all runs are alike on are drawn together, by their number: quick, and the same distribution.
    patterns, number = np.unique(np.concatenate(right), axis=1, return_counts=True)  # (all runs, P), (P,)
    total, block = number.sum(), max(1, 2**22 // len(number))  # draws at a time
    sizes = (min(block, DRAWS - done) for done in range(0, DRAWS, block))
    shares = (generator.multinomial(total, number / total, size) / total for size in sizes)  # (block, P)
    runs = np.concatenate([share @ patterns.T for share in shares])  # (DRAWS, all runs)
    columns, first = [], 0
    for each in right:
        size = len(each)
        drawn = generator.multinomial(size, np.full(size, 1 / size), DRAWS) / size - 1 / size  # (DRAWS, R)
        weights = 1 / size + drawn * np.sqrt(size / max(size - 1, 1))
        columns.append((weights * runs[:, first : first + size]).sum(axis=1))
        first += size
    return np.stack(columns, axis=1)


def differences(right: Mapping[str, NDArray[np.bool_]]) -> pd.DataFrame:
    """Every pair of configurations: how much more often the first is right than the second.

    Args:
        right: of each configuration, by name, (R, N): whether its R runs are right on each of the N images.

    Returns:
        first, second: the names.
        images: N.
        acc_first, acc_second, difference: mean over images and runs.
        low, high: the 95 % interval of the difference, percentiles of the bootstrap, see `resampled`.
        only_first, only_second: images that only the one is right on, in the mean over all pairs of their runs.
        test, p: McNemar's exact test of two single runs, which asks whether these two networks differ on such images;
            else the share of the bootstrap beyond 0, twice, which asks whether the configurations do.
    """
    drawn, rows = resampled(list(right.values())), []
    for (i, (first, a)), (j, (second, b)) in combinations(enumerate(right.items()), 2):
        a_right, b_right, gap = a.mean(axis=0), b.mean(axis=0), drawn[:, i] - drawn[:, j]
        only_a, only_b = (a_right * (1 - b_right)).sum(), (b_right * (1 - a_right)).sum()
        low, high = np.quantile(gap, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        if len(a) == len(b) == 1:
            test, p = "McNemar", mcnemar(int(only_a), int(only_b))
        else:
            beyond = min((gap <= 0).sum(), (gap >= 0).sum())
            test, p = "bootstrap", min(1.0, 2 * (beyond + 1) / (len(gap) + 1))
        rows.append({
            "first": first, "second": second, "images": a.shape[1],
            "acc_first": a_right.mean(), "acc_second": b_right.mean(), "difference": a_right.mean() - b_right.mean(),
            "low": low, "high": high, "only_first": only_a, "only_second": only_b, "test": test, "p": p,
        })  # fmt: skip
    return pd.DataFrame(rows)
