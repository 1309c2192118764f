"""Accuracy on corrupted images."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from src.figures.style import BLACK, COLOURS, Figure, house_style, percent_ticks


@house_style()
def corruption_curves(groups: Mapping[str, Mapping[str, ArrayLike]], clean: float, title: str = "") -> Figure:
    """A panel for each group of corruptions: accuracy against severity, from the clean images on.

    ``groups`` maps a group's name to its corruptions', and these to accuracies (5,) at the severities 1 to 5;
    ``clean`` is the accuracy without any.
    """
    figure = Figure(max(2.6 * len(groups), 5.4), 4.0, title)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (group, curves) in zip(panels, groups.items(), strict=True):
        axes.axhline(clean, color=BLACK, linewidth=1, linestyle="--")
        for (name, accuracy), colour, mark in zip(curves.items(), COLOURS, "osD^", strict=False):
            look: Any = {"color": colour, "marker": mark, "markersize": 4, "label": name.replace("_", " ")}
            axes.plot(range(6), [clean, *np.asarray(accuracy)], **look)
        axes.set(xlabel="severity", ylim=(0, 1.02))
        axes.set_xticks(range(6), ["clean", *range(1, 6)])
        axes.set_title(group)
        axes.grid(axis="y")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))
    panels[0].set_ylabel("accuracy")
    panels[0].yaxis.set_major_formatter(percent_ticks())
    return figure
