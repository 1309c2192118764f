"""Metrics over epochs: of one run, and of groups of runs.

A history maps "epoch", counted from 0, and metric names ("train/loss", "val/acc", "val/score", ...) to equally long
columns, NaN where an epoch has no value: a data frame does. Each metric has its own panel, losses first.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from src.figures.style import BLUE, COLOURS, VERMILION, Figure, house_style, percent, percent_ticks, short

DASHES = ("-", "--", ":", "-.")
LOOKS: list[dict[str, Any]] = [{"linestyle": dash, "color": colour} for dash in DASHES for colour in COLOURS]
SPLITS = {"train": ("training", BLUE), "val": ("validation", VERMILION)}
NAMES = {"acc": "accuracy", "acc_top5": "top-5 accuracy"}  # metrics that end so are in percent
MOST = 6  # panels
History = Mapping[str, Any]


def _points(history: History, name: str) -> dict[int, float]:
    """The values of one metric by epoch; epochs that have no value of it are left out."""
    pairs = zip(history["epoch"], history.get(name, ()), strict=False)
    return {int(epoch): float(value) for epoch, value in pairs if np.isfinite(value)}


def overfit_epoch(history: History) -> int | None:
    """The epoch of the lowest validation loss, where over-fitting begins; None without validation."""
    losses = _points(history, "val/loss")
    return min(losses, key=losses.__getitem__, default=None)


def _panels(histories: Iterable[History], title: str, extra: float = 0) -> tuple[Figure, list[tuple[Any, str]]]:
    """A figure with axes for each metric ("loss", "acc", ...); a speed is none. ``extra`` inches are for a legend."""
    shown = [name for h in histories for name in h if name.startswith(("train/", "val/")) and _points(h, name)]
    metrics = dict.fromkeys(name.partition("/")[2] for name in shown if not name.endswith("_per_s"))
    names = sorted(metrics, key=lambda metric: "loss" not in metric)[:MOST] or ["loss"]
    columns = len(names) if len(names) < 4 else -(-len(names) // 2)
    rows = -(-len(names) // columns)
    figure = Figure(max(4.3 * columns, 5.0), 3.4 * rows + extra, title)
    return figure, [(figure.add_subplot(rows, columns, i + 1), name) for i, name in enumerate(names)]


def _line(axes: Any, points: dict[int, float], **look: Any) -> None:
    axes.plot(list(points), list(points.values()), marker="o" if len(points) <= 40 else None, markersize=3, **look)


def _dress(axes: Any, metric: str, label: str) -> None:
    """Axis labels, ticks and limits of a panel."""
    axes.set(xlabel="epoch", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y")
    if "loss" in metric:
        axes.set_ylim(bottom=min(0, axes.dataLim.y0))
    elif metric.endswith(tuple(NAMES)):
        axes.yaxis.set_major_formatter(percent_ticks())


@house_style()
def curves(history: History, title: str = "") -> Figure:
    """Every metric of one run, training against validation; over-fitting is marked from the lowest loss on."""
    best, end = overfit_epoch(history), max(_points(history, "val/loss"), default=0)
    figure, panels = _panels([history], title)
    for axes, metric in panels:
        label = NAMES.get(metric, metric)
        for split, (name, colour) in SPLITS.items():
            if points := _points(history, f"{split}/{metric}"):
                _line(axes, points, color=colour, label=name)
                axes.legend()
        if points and metric.endswith(tuple(NAMES)):
            top = max(points, key=points.__getitem__)
            axes.set_title(f"highest validation {label}: {percent(points[top], 2)}, epoch {top}", loc="left")
        if best is not None:
            axes.axvline(best, color="#666666", linewidth=0.9, linestyle="--")
            axes.axvspan(best, end, color="#F1F1F1", linewidth=0, zorder=0)
            if metric == "loss":
                note = "then over-fitting (grey)" if end > best else "the last one"
                axes.set_title(f"lowest validation loss: epoch {best} (dashed), {note}", loc="left")
        _dress(axes, metric, label)
    return figure


@house_style()
def compare(groups: Mapping[str, Sequence[History]], title: str = "") -> Figure:
    """Validation metrics of groups of runs: a thin line for each run, a thick one for the mean.

    ``groups`` maps a name to the histories of its runs, which usually differ by seed alone. The mean is drawn over
    the epochs that all runs of the group have reached. A metric that only the training has is shown for the training.
    """
    every = [history for histories in groups.values() for history in histories]
    longest = min(60, max(map(len, groups), default=0) + len(" (n = 5)"))
    columns = max(1, min(3, 110 // (longest + 8)))  # of the legend
    figure, panels = _panels(every, title, 0.18 * -(-len(groups) // columns))
    for axes, metric in panels:
        split = "val" if any(_points(history, f"val/{metric}") for history in every) else "train"
        for (label, histories), look in zip(groups.items(), cycle(LOOKS), strict=False):
            runs = [points for history in histories if (points := _points(history, f"{split}/{metric}"))]
            for points in runs if len(runs) > 1 else []:
                axes.plot(list(points), list(points.values()), linewidth=0.6, alpha=0.5, **look)
            if runs:
                shared = [epoch for epoch in runs[0] if all(epoch in points for points in runs)]
                text = f"{label} (n = {len(runs)})" if len(runs) > 1 else label
                means = {epoch: sum(points[epoch] for points in runs) / len(runs) for epoch in shared}
                _line(axes, means, label=short(text, 60), **look)
        _dress(axes, metric, f"{SPLITS[split][0]} {NAMES.get(metric, metric)}")
    lines = {line.get_label(): line for axes, _ in panels for line in axes.get_legend_handles_labels()[0]}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=columns)
    return figure


@house_style()
def over_minutes(runs: Mapping[str, tuple[Sequence[float], Sequence[float]]], title: str = "") -> Figure:
    """The training accuracy of runs over the time that they took; ``runs`` maps a name to minutes and accuracies."""
    figure = Figure(7.5, 3.6, title)
    axes = figure.add_subplot()
    for (name, (minutes, accuracies)), look in zip(runs.items(), cycle(LOOKS), strict=False):
        axes.plot(minutes, accuracies, label=name, **look)
    axes.set(xlabel="minutes of training", ylabel="training accuracy", xlim=(0, None))
    axes.yaxis.set_major_formatter(percent_ticks())
    axes.grid(axis="y")
    figure.legend(loc="outside right upper")
    return figure
