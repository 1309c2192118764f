"""Pictures of a search: Optuna's own, in the house style."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import optuna
from matplotlib.style import library

from src.figures import house_style
from src.figures.style import STYLE


@contextmanager
def house_style_for_optuna() -> Iterator[None]:
    """The house style under the name "ggplot" as well: Optuna's plots set that style themselves, and take no other."""
    ggplot = library["ggplot"]
    library["ggplot"] = STYLE
    try:
        with house_style():
            yield
    finally:
        library["ggplot"] = ggplot


def draw(study: optuna.Study, metrics: list[str], folder: Path) -> dict[str, dict[str, float]]:
    """Draws history, slices and importances of each metric, and the curves of one or the front of two, as PNG.

    Returns:
        The importances: share of each parameter in the variance of each metric, where enough trials tell them apart.
    """
    matplotlib.use("Agg")
    from optuna.visualization import matplotlib as plots

    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    importances: dict[str, dict[str, float]] = {}
    drawn: dict[str, Any] = {}
    folder.mkdir(exist_ok=True)
    with house_style_for_optuna(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are experimental
        # Choices that are numbers are meant as words, which it would tell at each plot.
        logging.getLogger("matplotlib.category").setLevel(logging.WARNING)
        for i, metric in enumerate(metrics):
            target = (lambda trial, i=i: trial.values[i]) if len(metrics) > 1 else None
            suffix = f"_{metric.replace('/', '_')}" if target else ""
            kinds: dict[str, Any] = {"history": plots.plot_optimization_history, "slice": plots.plot_slice}
            if len({trial.values[i] for trial in complete}) > 3:
                importances[metric] = optuna.importance.get_param_importances(study, target=target)
                kinds["importance"] = plots.plot_param_importances
            drawn |= {kind + suffix: plot(study, target=target, target_name=metric) for kind, plot in kinds.items()}
        if len(metrics) == 2:
            drawn["pareto"] = plots.plot_pareto_front(study, target_names=metrics)
        if len(metrics) == 1:
            drawn["curves"] = plots.plot_intermediate_values(study)
            drawn["curves"].set(xlabel="epoch", ylabel=metrics[0])
        for name, axes in drawn.items():
            for each in np.ravel(axes):
                if each.get_xscale() == "log":
                    each.xaxis.set_major_formatter("{x:g}")  # the house style sets no formulas, as 10^-2 is one
            each.figure.savefig(folder / f"{name}.png")
            matplotlib.pyplot.close(each.figure)
    return importances
