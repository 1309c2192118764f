"""Arrays in, matplotlib figures out.

Said once for the whole file: images are uint8 (N, 3, H, W), labels int (N,), probabilities float (N, K) with
rows that sum to 1, and epochs count from 0 as the checkpoints' names do. pyplot is never touched, so a figure
can be drawn in any thread and without a screen. Colours are those of Okabe and Ito (2008), which colour-blind
eyes tell apart: blue is training or right, vermilion is validation or wrong.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, ParamSpec

import matplotlib.figure
import numpy as np
from matplotlib import rc_context
from matplotlib.colors import PowerNorm
from matplotlib.image import imread
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, PALE, BLACK, GREY = "#E69F00", "#56B4E9", "#BBDFF6", "#222222", "#B8B8B8"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
DASHES = ("-", "--", ":", "-.")

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so every machine draws the same figure
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "grid.linewidth": 0.7,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 1.6,
    "hatch.linewidth": 0.6,
    "image.interpolation": "nearest",
    "text.parse_math": False,  # a class may be called a$b$
    "savefig.bbox": None,
    "figure.constrained_layout.h_pad": 0.07,
    "figure.constrained_layout.w_pad": 0.07,
}
DPI = 160  # of files; 200 px is 1.25 inches on paper

P = ParamSpec("P")


class Figure(matplotlib.figure.Figure):
    """A figure that lays itself out, is drawn once, and shows itself as the last value of a notebook's cell."""

    def __init__(self, width: float, height: float) -> None:
        """``width`` and ``height`` in inches."""
        super().__init__(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")

    @cached_property
    def png(self) -> bytes:
        """The picture as a PNG file."""
        buffer = io.BytesIO()
        with rc_context(STYLE):
            self.savefig(buffer, format="png", dpi=DPI)
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG, making the folder, and gives the path back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(figure.png)
    return path


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The figure as uint8 (H, W, 3): TensorBoard's ``add_image(..., dataformats="HWC")`` takes it."""
    return (imread(io.BytesIO(figure.png))[:, :, :3] * 255).round().astype(np.uint8)


def _styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    @wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


# --- curves -------------------------------------------------------------------------------------------------


def _points(history: Mapping[str, Any], name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Epochs and values of one metric; epochs that have no value of it are left out."""
    if name not in history:
        return np.empty(0), np.empty(0)
    epochs, values = np.asarray(history["epoch"], float), np.asarray(history[name], float)
    there = np.isfinite(values)
    return epochs[there], values[there]


def overfit_epoch(history: Mapping[str, Any]) -> int | None:
    """The epoch of the lowest validation loss, where over-fitting begins; None without validation."""
    epochs, losses = _points(history, "val/loss")
    return int(epochs[losses.argmin()]) if len(losses) else None


def _dress(axes: Any, metric: str, name: str) -> None:
    """Axis labels, ticks and limits of a panel that has "loss" or "acc" over epochs."""
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y")
    low, high = axes.dataLim.intervaly if axes.has_data() else (0, 1)
    if metric == "loss":
        axes.set_ylim(0, 1.05 * high if np.isfinite(high) and high > 0 else 1)
    elif np.isfinite([low, high]).all():
        room = max(0.05 * (high - low), 0.01)  # at least two points of accuracy, so that equal values are no zoom
        axes.set_ylim(low - room, high + room)
        axes.yaxis.set_major_formatter(PercentFormatter(1))


@_styled
def curves(history: Mapping[str, Any], title: str = "") -> Figure:
    """Loss and accuracy of one run, training against validation.

    ``history`` maps "epoch" and metric names ("train/loss", "val/acc", ...) to equally long columns, NaN
    where an epoch has no value: a data frame does. Over-fitting is marked from the lowest validation loss on.
    """
    figure = Figure(8.6, 3.4)
    best = overfit_epoch(history)
    end = _points(history, "val/loss")[0].max(initial=0)
    for axes, metric, name in zip(figure.subplots(1, 2), ("loss", "acc"), ("loss", "accuracy"), strict=True):
        for split, label, colour in (("train", "training", BLUE), ("val", "validation", VERMILION)):
            epochs, values = _points(history, f"{split}/{metric}")
            if len(epochs):
                dots = "o" if len(epochs) <= 40 else None
                axes.plot(epochs, values, colour, marker=dots, markersize=3, label=label)
                axes.legend(loc="best")
        if best is not None:
            axes.axvline(best, color="#666666", linewidth=0.9, linestyle=(0, (4, 3)))
            if end > best:
                axes.axvspan(best, end, color="#F1F1F1", zorder=0)
        _dress(axes, metric, name)
    if best is not None:
        note = f"lowest validation loss: epoch {best} (dashed)"
        note += ", then over-fitting (grey)" if end > best else ", the last one"
        figure.axes[0].set_title(note, fontsize=8, loc="left")
        epochs, values = _points(history, "val/acc")
        if len(values):
            at = values.argmax()
            note = f"highest validation accuracy: {values[at]:.2%}, epoch {epochs[at]:.0f}"
            figure.axes[1].set_title(note, fontsize=8, loc="left")
    if title:
        figure.suptitle(title)
    return figure


@_styled
def compare(groups: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "") -> Figure:
    """Validation loss and accuracy of groups of runs: a thin line for each run, a thick one for the mean.

    ``groups`` maps a name to the histories (see ``curves``) of its runs, which usually differ by seed alone.
    The mean is drawn over the epochs that all runs of the group have reached.
    """
    rows = -(-len(groups) // 3)
    figure = Figure(8.4, 3.3 + 0.18 * rows)
    panels = figure.subplots(1, 2)
    for axes, metric, name in zip(panels, ("loss", "acc"), ("loss", "accuracy"), strict=True):
        for number, (label, histories) in enumerate(groups.items()):
            colour = COLOURS[number % len(COLOURS)]
            dash = DASHES[number // len(COLOURS) % len(DASHES)]
            runs = [points for h in histories if len((points := _points(h, f"val/{metric}"))[0])]
            for epochs, values in runs if len(runs) > 1 else []:
                axes.plot(epochs, values, colour, linewidth=0.6, alpha=0.5, linestyle=dash)
            if runs:
                shared = sorted(set.intersection(*(set(epochs) for epochs, _ in runs)))
                means = np.mean([values[np.isin(epochs, shared)] for epochs, values in runs], axis=0)
                dots = "o" if len(shared) <= 40 else None
                text = f"{label} (n = {len(runs)})" if len(runs) > 1 else label
                axes.plot(shared, means, colour, linestyle=dash, label=text, marker=dots, markersize=3)
        _dress(axes, metric, f"validation {name}")
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            [_short(label, 60) for label in labels],
            loc="outside lower center",
            ncols=max(1, min(3, 110 // (max(map(len, labels)) + 8))),
        )
    figure.suptitle(title)
    return figure


# --- classes ------------------------------------------------------------------------------------------------


def _short(name: str, length: int) -> str:
    """At most ``length`` characters: the middle goes, because names tend to differ at their ends."""
    keep = length - 1
    return name if len(name) <= length else f"{name[: keep - keep // 2]}…{name[len(name) - keep // 2 :]}"


@_styled
def confusion_matrix(counts: ArrayLike, classes: Sequence[str], title: str = "") -> Figure:
    """Confusion matrix, true classes down and predicted classes across.

    ``counts`` (K, K) holds numbers of images. The colour is the share of the true class, on a square-root
    scale, so that one confusion in a hundred is still seen; up to 20 classes have their counts written in.
    A class without images is hatched. Above 150 classes the axes carry numbers instead of names.
    """
    counts = np.asarray(counts)
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    k = len(classes)
    side = 3.4 + 0.36 * k if k <= 20 else min(3.4 + 0.13 * k, 12)
    figure = Figure(side + 0.9, side)
    axes = figure.subplots()
    norm = PowerNorm(0.5, vmin=0, vmax=1)
    image = axes.imshow(share, cmap="Blues", norm=norm)

    if k <= 150:
        size = 8 if k <= 20 else max(3.5, min(7.0, 420 / k))
        names = [_short(name, 24) for name in classes]
        axes.set_xticks(range(k), names, fontsize=size, rotation=90 if k > 20 else 0)
        if k <= 20 and max(map(len, names)) > 5:
            axes.tick_params("x", labelrotation=45)
            for label in axes.get_xticklabels():
                label.set(ha="right", rotation_mode="anchor")
        axes.set_yticks(range(k), names, fontsize=size)
    axes.tick_params(length=0 if k <= 20 else 1.5)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.spines[["top", "right"]].set_visible(True)
    if 1 < k <= 50:
        for edge in np.arange(0.5, k - 1):
            axes.axhline(edge, color="white", linewidth=0.8)
            axes.axvline(edge, color="white", linewidth=0.8)
    for row in np.flatnonzero(total[:, 0] == 0).tolist():
        axes.axhspan(row - 0.5, row + 0.5, facecolor="#F4F4F4", edgecolor=GREY, hatch="////", linewidth=0)
        if k <= 20:
            axes.text(
                (k - 1) / 2,
                row,
                "no images",
                ha="center",
                va="center",
                fontsize=8,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
            )
    if k <= 20:
        digits = len(str(counts.max()))
        for row, column in zip(*np.nonzero(counts), strict=True):
            axes.text(
                column,
                row,
                f"{counts[row, column]}",
                ha="center",
                va="center",
                fontsize=8 if digits <= 4 else 6,
                color="white" if norm(share[row, column]) > 0.6 else BLACK,
            )
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.set_label("share of the true class's images")
    bar.outline.set_visible(False)
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    heading = f"{np.trace(counts):,} of {counts.sum():,} images right ({accuracy:.2%})"
    axes.set_title(heading, fontsize=8)
    if title:
        figure.suptitle(title)
    return figure


MOST_BARS = 100


@_styled
def class_bars(
    values: Mapping[str, ArrayLike],
    classes: Sequence[str],
    label: str,
    title: str = "",
    percent: bool = True,
    ordered: bool = True,
) -> Figure:
    """One row a class: a bar for the first of ``values`` and a mark for each of the others.

    ``values`` maps a name to K numbers (NaN: nothing to show). ``ordered`` puts the lowest bar on top, where
    one looks first; above 100 classes the 100 lowest are shown, and the title says so.
    """
    columns = {name: np.asarray(column, float) for name, column in values.items()}
    first = next(iter(columns.values()))
    order = np.argsort(first, kind="stable") if ordered else np.arange(len(classes))  # NaN sorts last
    heading = title
    if len(order) > MOST_BARS:
        heading = f"{title} (the {MOST_BARS} lowest of {len(order)} classes)".strip()
        order = order[:MOST_BARS]
    panels = -(-len(order) // 34)
    rows = -(-len(order) // panels)
    width = {1: 6.4, 2: 8.4, 3: 11.0}[panels]
    figure = Figure(width, 1.3 + max(rows, 3) * (0.26 if panels == 1 else 0.19))
    top = max((column[np.isfinite(column)].max(initial=0) for column in columns.values()), default=1.0)
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    for panel, axes in enumerate(all_axes):
        part = order[panel * rows : (panel + 1) * rows]
        at = np.arange(len(part))
        axes.barh(at, np.nan_to_num(first[part]), height=0.72, color=PALE, label=next(iter(columns)))
        for name, mark, colour in zip(list(columns)[1:], "oDs", (BLUE, VERMILION, GREEN), strict=False):
            axes.plot(columns[name][part], at, mark, color=colour, markersize=3.6, label=name)
        for row, value in zip(at, first[part], strict=True):
            note = "no images" if np.isnan(value) else f"{value:.1%}" if percent else f"{value:,.0f}"
            if panels == 1 or np.isnan(value):
                axes.text(0.01, row, note, va="center", fontsize=7, transform=axes.get_yaxis_transform())
        axes.set_yticks(at, [_short(classes[i], 28) for i in part], fontsize=8 if panels == 1 else 6.5)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_xlim(0, 1.02 if percent else max(top, 1e-9) * 1.05)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_xlabel(label)
        if percent:
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        else:
            axes.xaxis.set_major_locator(MaxNLocator(4))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    if len(columns) > 1:
        handles, labels = all_axes[0].get_legend_handles_labels()
        figure.legend(
            handles[-1:] + handles[:-1],
            labels[-1:] + labels[:-1],  # the bar is listed last
            loc="outside lower center",
            ncols=len(labels),
        )
    figure.suptitle(heading)
    return figure


def calibration(confidence: ArrayLike, right: ArrayLike, bins: int = 15) -> tuple[NDArray[Any], ...]:
    """Images, mean confidence and accuracy, each (bins,), of equally wide bins (a, b] of the confidence.

    Guo et al. 2017, "On calibration of modern neural networks", section 2. Empty bins hold 0.
    """
    confidence, right = np.asarray(confidence, float), np.asarray(right, float)
    which = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    some = np.maximum(count, 1)
    mean = np.bincount(which, confidence, bins) / some
    accuracy = np.bincount(which, right, bins) / some
    return count, mean, accuracy


@_styled
def reliability(confidence: ArrayLike, right: ArrayLike, bins: int = 15, title: str = "") -> Figure:
    """Reliability diagram: accuracy against confidence, and how many images each bin holds.

    ``confidence`` (N,) is the probability of the predicted class, ``right`` (N,) whether it is the true one.
    The expected calibration error is the mean over images of |accuracy - confidence| of their bin (Guo et al.
    2017, equation 3).
    """
    count, mean, accuracy = calibration(confidence, right, bins)
    total = max(count.sum(), 1)
    error = float((count * np.abs(accuracy - mean)).sum() / total)
    figure = Figure(4.8, 5.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    centre, width, full = (np.arange(bins) + 0.5) / bins, 1 / bins, count > 0
    above.bar(centre[full], accuracy[full], width * 0.94, color=SKY, label="accuracy")
    gap = (accuracy - mean)[full]
    above.bar(
        centre[full],
        gap,
        width * 0.94,
        bottom=mean[full],
        color="none",
        edgecolor=VERMILION,
        hatch="//////",
        linewidth=0.8,
        label="gap to the confidence",
    )
    above.plot([0, 1], [0, 1], color=BLACK, linewidth=1, linestyle=(0, (4, 3)), label="calibrated")
    above.set_ylim(0, 1.02)
    above.set_xlim(0, 1)
    above.set_ylabel("accuracy")
    below.bar(centre, count / total, width * 0.94, color=GREY)
    heights = [
        ("accuracy", (count * accuracy).sum() / total, BLUE),
        ("confidence", (count * mean).sum() / total, VERMILION),
    ]
    for name, value, colour in heights:
        below.axvline(value, color=colour, linewidth=1.2, label=f"mean {name} {value:.1%}")
    entries = [axes.get_legend_handles_labels() for axes in (above, below)]
    figure.legend(*(a + b for a, b in zip(*entries, strict=True)), loc="outside lower center", ncols=2)
    below.set_xlabel("confidence: probability of the predicted class")
    below.set_ylabel("share of images")
    for axes in (above, below):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(axis="y")
    note = f"expected calibration error {error:.2%} ({bins} bins, {count.sum():,} images)"
    above.set_title(note, fontsize=8)
    if title:
        figure.suptitle(title)
    return figure


# --- images -------------------------------------------------------------------------------------------------


def _grid(number: int, columns: int, cell: tuple[float, float], heading: float) -> tuple[Figure, list[Any]]:
    """A figure with ``number`` empty axes in rows of ``columns``; ``cell`` is (width, height) in inches."""
    columns = max(1, min(columns, number))
    rows = max(1, -(-number // columns))
    figure = Figure(max(columns * cell[0], 4.2), rows * cell[1] + heading)
    all_axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in all_axes:
        axes.set_axis_off()
    return figure, all_axes[:number]


def _show(axes: Any, image: NDArray[np.uint8], frame: str) -> None:
    axes.set_axis_on()
    axes.imshow(image.transpose(1, 2, 0))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, color=frame, linewidth=1.6 if frame != GREY else 0.6)


def _probability(value: float) -> str:
    if 0.9995 <= value < 1:
        return ">99.9%"
    return "<0.1%" if 0 < value < 0.0005 else f"{value:.1%}"


@_styled
def examples(
    images: NDArray[np.uint8],
    labels: ArrayLike,
    probabilities: ArrayLike,
    classes: Sequence[str],
    title: str = "",
    columns: int = 6,
) -> Figure:
    """A grid of images with their predicted and true classes and the probability given to each.

    The frame is blue where the prediction is right and vermilion where it is wrong.
    """
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    captions = []
    for label, row in zip(labels, probabilities, strict=True):
        guess = int(row.argmax())
        captions.append(
            f"predicted: {_short(classes[guess], 22)} ({_probability(row[guess])})\n"
            f"true: {_short(classes[label], 22)} ({_probability(row[label])})"
        )
    longest = max((len(line) for caption in captions for line in caption.split("\n")), default=0)
    width = max(1.5, 0.056 * longest + 0.15)  # inches, at 7 points
    figure, all_axes = _grid(len(images), min(columns, int(10.5 / width)), (width, width + 0.35), 0.3)
    if not len(images):
        figure.text(0.5, 0.4, "no such images", ha="center", color="#666666")
    for axes, image, label, row, caption in zip(all_axes, images, labels, probabilities, captions, strict=True):
        _show(axes, image, BLUE if row.argmax() == label else VERMILION)
        axes.set_xlabel(caption, fontsize=7, color=BLACK, labelpad=3)
    figure.suptitle(title)
    return figure


@_styled
def image_grid(
    images: Sequence[NDArray[np.uint8]], captions: Sequence[str] = (), title: str = "", columns: int = 8
) -> Figure:
    """A contact sheet: images uint8 (3, H, W), of one or of many sizes, each with its caption beneath."""
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    figure, all_axes = _grid(len(images), columns, (1.25, 1.25 + 0.14 * lines), 0.3)
    for number, (axes, image) in enumerate(zip(all_axes, images, strict=True)):
        _show(axes, image, GREY)
        if captions:
            text = "\n".join(_short(line, 20) for line in captions[number].split("\n"))
            axes.set_xlabel(text, fontsize=7, color=BLACK, labelpad=3)
    figure.suptitle(title)
    return figure
