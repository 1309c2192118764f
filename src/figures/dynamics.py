"""A figure of what a training made of its images."""

from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import ArrayLike

from src.figures.style import BLACK, BLUE, GREY, VERMILION, Figure, house_style, percent_ticks

MOST = 25_000  # points


@house_style()
def data_map(variability: ArrayLike, confidence: ArrayLike, correctness: ArrayLike, title: str = "") -> Figure:
    """A point for each image (Swayamdipta et al. 2020, figure 1), at most 25,000 of them, evenly spaced.

    ``variability`` and ``confidence`` (N,) are the standard deviation and the mean over epochs of the probability of
    the image's label, ``correctness`` (N,) is the share of epochs in which it was right; NaN: nothing to show.
    """
    rows = np.stack([np.asarray(each, float) for each in (variability, confidence, correctness)])
    rows = rows[:, ~np.isnan(rows).any(axis=0)]
    number = rows.shape[1]
    shown = rows[:, :: max(1, -(-number // MOST))]
    figure = Figure(6.0, 4.6, title)
    axes = figure.subplots()
    colours = LinearSegmentedColormap.from_list("correctness", [VERMILION, GREY, BLUE])
    size = float(np.clip(4000 / max(shown.shape[1], 1), 2, 14))
    points = axes.scatter(shown[0], shown[1], c=shown[2], s=size, cmap=colours, vmin=0, vmax=1, linewidth=0)
    axes.set(xlabel="variability: deviation over epochs of the probability of its label", ylabel="confidence: its mean")
    right = max(0.3, 1.22 * shown[0].max(initial=0))
    axes.set(xlim=(-0.005, right), ylim=(-0.08, 1.08))
    axes.grid()
    for x, y, text, side in ((0, 1.04, "easy", "left"), (0, -0.05, "hard", "left"), (right, 0.5, "ambiguous", "right")):
        axes.text(x, y, text, ha=side, va="center", color=BLACK)
    bar: Any = figure.colorbar(points, ax=axes, fraction=0.04, pad=0.02, format=percent_ticks())
    bar.set_label("share of epochs in which it was right")
    bar.outline.set_visible(False)
    counted = f"{shown.shape[1]:,} of {number:,}" if number > MOST else f"{number:,}"
    axes.set_title(f"{counted} training images")
    return figure
