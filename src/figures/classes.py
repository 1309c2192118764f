"""Figures of what a network says of each class. Probabilities are float (N, K) with rows that sum to 1."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from numpy.typing import ArrayLike

from src.figures.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    PALE,
    SKY,
    VERMILION,
    Figure,
    house_style,
    percent,
    percent_ticks,
    short,
)

MOST_BARS = 100
MOST_SLICES = 12


@house_style()
def confusion_matrix(
    labels: Iterable[str], predictions: Iterable[str], classes: Sequence[str], title: str = ""
) -> Figure:
    """Confusion matrix of N images by name of their class, true classes down and predicted classes across.

    The colour is the share of the true class, on a square-root scale, so that one confusion in a hundred is still
    seen; up to 20 classes have their numbers of images written in. A class without images is hatched. Above 150
    classes the axes carry numbers instead of names.
    """
    place, k = {name: i for i, name in enumerate(classes)}, len(classes)
    counts = np.zeros((k, k), int)
    np.add.at(counts, ([place[name] for name in labels], [place[name] for name in predictions]), 1)
    total = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(total, 1)
    side = 3.4 + 0.36 * k if k <= 20 else min(3.4 + 0.13 * k, 12)
    figure = Figure(side + 0.9, side, title)
    axes = figure.subplots()
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(share, cmap="Blues", norm=norm)
    if k <= 150:
        size = 8 if k <= 20 else max(3.5, min(7.0, 420 / k))
        names = [short(name, 24) for name in classes]
        turn = 90 if k > 20 else 45 if max(map(len, names)) > 5 else 0
        turned: Any = {"rotation": turn, "ha": "right", "va": "center", "rotation_mode": "anchor"} if turn else {}
        axes.set_xticks(range(k), names, fontsize=size, **turned)
        axes.set_yticks(range(k), names, fontsize=size)
    axes.tick_params(length=0 if k <= 20 else 1.5)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.spines[["top", "right"]].set_visible(True)
    centre: Any = {"ha": "center", "va": "center", "fontsize": 8 if counts.max() < 10_000 else 6}
    for row in np.flatnonzero(total[:, 0] == 0).tolist():
        axes.axhspan(row - 0.5, row + 0.5, facecolor="#F4F4F4", edgecolor=GREY, hatch="////", linewidth=0)
        if k <= 20:
            axes.text((k - 1) / 2, row, "no images", backgroundcolor="white", **centre)
    if k <= 20:
        for row, column in np.argwhere(counts).tolist():
            colour = "white" if norm(share[row, column]) > 0.6 else BLACK
            axes.text(column, row, f"{counts[row, column]}", color=colour, **centre)
    bar: Any = figure.colorbar(
        image, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1], format=percent_ticks()
    )
    bar.set_label("share of the true class's images")
    bar.outline.set_visible(False)
    right, number = np.trace(counts), counts.sum()
    axes.set_title(f"{right:,} of {number:,} images right ({percent(right / max(number, 1), 2)})")
    return figure


@house_style()
def class_bars(
    values: Mapping[str, ArrayLike], classes: Sequence[str], label: str, title: str = "", shares: bool = True
) -> Figure:
    """One row a class: a bar for the first of ``values`` and a mark for each of the others.

    ``values`` maps a name to K numbers (NaN: nothing to show). The lowest bar is on top, where one looks first;
    above 100 classes the 100 lowest are shown, and the title says so.
    """
    columns = {name: np.asarray(column, float) for name, column in values.items()}
    (name, first), *others = columns.items()
    order = np.argsort(first, kind="stable")  # NaN sorts last
    if len(order) > MOST_BARS:
        title = f"{title} (the {MOST_BARS} lowest of {len(order)} classes)".strip()
        order = order[:MOST_BARS]
    panels = -(-len(order) // 34)
    rows = -(-len(order) // panels)
    figure = Figure((6.4, 8.4, 11.0)[panels - 1], 1.3 + max(rows, 3) * (0.26 if panels == 1 else 0.19), title)
    top = np.nanmax([0, *np.concatenate(list(columns.values()))])
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    for axes, part in zip(all_axes, np.array_split(order, panels), strict=True):
        at = np.arange(len(part))
        axes.barh(at, np.nan_to_num(first[part]), height=0.72, color=PALE, label=name)
        for (other, column), mark, colour in zip(others, "oDs", (BLUE, VERMILION, GREEN), strict=False):
            axes.plot(column[part], at, mark, color=colour, markersize=3.6, label=other)
        for row, value in zip(at, first[part], strict=True):
            note = "no images" if np.isnan(value) else percent(value) if shares else f"{value:,.0f}"
            if panels == 1 or np.isnan(value):
                axes.text(0.01, row, note, va="center", fontsize=7, transform=axes.get_yaxis_transform())
        axes.set_yticks(at, [short(classes[i], 28) for i in part], fontsize=8 if panels == 1 else 6.5)
        axes.set(xlabel=label, xlim=(0, 1.02 if shares else max(top, 1e-9) * 1.05), ylim=(rows - 0.4, -0.6))
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.xaxis.set_major_formatter(percent_ticks() if shares else "{x:,.10g}")
    if others:
        figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(columns))
    return figure


@house_style()
def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = 15, title: str = "") -> Figure:
    """Reliability diagram: accuracy against confidence, and how many images each bin holds.

    ``confidence`` (N,) is the probability of the predicted class, ``right`` (N,) whether it is the true one; the bins
    (a, b] of the confidence are equally wide. The expected calibration error is the mean over images of
    |accuracy - confidence| of their bin (Guo et al. 2017, "On calibration of modern neural networks", equation 3).
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    mean, accuracy = (np.bincount(which, each, bins) / np.maximum(count, 1) for each in (confidence, right))
    share = count / np.maximum(count.sum(), 1)
    figure = Figure(4.8, 5.4, title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    centre, width, full = (np.arange(bins) + 0.5) / bins, 0.94 / bins, count > 0
    above.bar(centre[full], accuracy[full], width, color=SKY, label="accuracy")
    hatched: Any = {"color": "none", "edgecolor": VERMILION, "hatch": "//////", "linewidth": 0.8}
    gap = accuracy - mean
    above.bar(centre[full], gap[full], width, bottom=mean[full], label="gap to the confidence", **hatched)
    above.plot([0, 1], [0, 1], color=BLACK, linewidth=1, linestyle="--", label="calibrated")
    above.set(ylim=(0, 1.02), xlim=(0, 1), ylabel="accuracy")
    below.bar(centre, share, width, color=GREY)
    for name, value, colour in (("accuracy", share @ accuracy, BLUE), ("confidence", share @ mean, VERMILION)):
        below.axvline(value, color=colour, linewidth=1.2, label=f"mean {name} {percent(value)}")
    below.set(xlabel="confidence: probability of the predicted class", ylabel="share of images")
    for axes in (above, below):
        axes.yaxis.set_major_formatter(percent_ticks())
        axes.xaxis.set_major_formatter(percent_ticks())
        axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    above.set_title(
        f"expected calibration error {percent(share @ np.abs(gap), 2)} ({bins} bins, {count.sum():,} images)"
    )
    return figure


@house_style()
def slices(table: Any, overall: float, title: str = "") -> Figure:
    """A panel for each measure that images were sliced by: the accuracy of its slices and their intervals.

    ``table`` is a data frame of "by", "slice", "images", "accuracy", "low" and "high", slices of a measure in order.
    ``overall`` is the accuracy on all images. Of the classes the worst are shown.
    """
    panels = table.groupby("by", sort=False)
    figure = Figure(9.6, 7.2, title)
    for axes, (kind, rows) in zip(figure.subplots(2, 2, sharex=True).flat, panels, strict=True):
        text = kind
        if kind == "class":
            text = f"class: the lowest {MOST_SLICES} of {len(rows)}" if len(rows) > MOST_SLICES else kind
            rows = rows.sort_values("accuracy", kind="stable").head(MOST_SLICES)
        at = np.arange(len(rows))
        axes.hlines(at, rows["low"], rows["high"], color=SKY, linewidth=2.4)
        axes.plot(rows["accuracy"], at, "o", color=BLUE, markersize=4)
        axes.axvline(overall, color=VERMILION, linewidth=1, linestyle="--", zorder=0)
        axes.set_yticks(at, [short(name, 20) for name in rows["slice"]], fontsize=8)
        axes.set(title=f"by {text} ({rows['images'].mean():,.0f} images each)", ylim=(len(rows) - 0.4, -0.6))
        axes.xaxis.set_major_formatter(percent_ticks())
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
    figure.supxlabel(f"accuracy and its 95 % interval; all images: {percent(overall)} (dashed)", fontsize=9)
    return figure
