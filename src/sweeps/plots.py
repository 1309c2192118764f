"""Pictures of a search, drawn from what study.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BLUE, GREY, RED = "#3b6fb6", "#b0b0b0", "#c8443c"


def draw(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draws history, slices and importances of each metric, and the curves of one or the front of two, as PNG.

    Args:
        result: see `OptunaSweeper.report`.
        folder: where the pictures go.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    complete = [trial for trial in result["trials"] if trial["state"] == "complete"]
    if not complete:
        return []
    folder.mkdir(exist_ok=True)
    drawn = []

    def save(figure: Any, name: str) -> None:
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
        drawn.append(folder / f"{name}.png")
        figure.savefig(drawn[-1], dpi=150)
        plt.close(figure)

    for i, metric in enumerate(result["metrics"]):
        suffix = "" if len(result["metrics"]) == 1 else "_" + metric.replace("/", "_")
        values = [trial["values"][i] for trial in complete]
        save(_history(plt, result, complete, i), f"history{suffix}")
        save(_slices(plt, result["log"], complete, values, metric), f"slice{suffix}")
        if shares := result["importances"].get(metric):
            figure, axes = plt.subplots(figsize=(6, 1 + 0.5 * len(shares)), layout="constrained")
            axes.bar_label(
                axes.barh(list(shares)[::-1], list(shares.values())[::-1], color=BLUE), fmt="%.2f", padding=3
            )
            axes.set(xlim=(0, 1.1), xlabel=f"share of the variance of {metric} (fANOVA)")
            save(figure, f"importance{suffix}")
    if len(result["metrics"]) == 1:
        save(_curves(plt, result), "curves")
    elif len(result["metrics"]) == 2:
        figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
        front = sorted(trial["values"] for trial in complete if trial["number"] in result["best"])
        axes.scatter(*zip(*(trial["values"] for trial in complete), strict=True), color=GREY, label="trials")
        axes.plot(*zip(*front, strict=True), "o-", color=BLUE, drawstyle="steps-post", label="not dominated")
        axes.set(xlabel=result["metrics"][0], ylabel=result["metrics"][1])
        axes.legend(frameon=False)
        save(figure, "pareto")
    return drawn


def _history(plt: Any, result: Mapping[str, Any], complete: Sequence[Mapping[str, Any]], i: int) -> Any:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    numbers, values = [trial["number"] for trial in complete], [trial["values"][i] for trial in complete]
    pruned = [trial for trial in result["trials"] if trial["state"] == "pruned" and trial["values"]]
    if pruned:
        points = ([trial["number"] for trial in pruned], [trial["values"][0] for trial in pruned])
        axes.scatter(*points, color=GREY, marker="x", label="pruned, as it was then")
    better = max if result["directions"][i] == "maximize" else min
    axes.scatter(numbers, values, color=BLUE, label="to the end")
    axes.plot(
        numbers, [better(values[: n + 1]) for n in range(len(values))], color=RED, drawstyle="steps-post", label="best"
    )
    axes.set(xlabel="trial", ylabel=result["metrics"][i])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return figure


def _slices(
    plt: Any, log: Sequence[str], complete: Sequence[Mapping[str, Any]], values: Sequence[float], metric: str
) -> Any:
    keys = list(complete[0]["params"])
    figure, grid = plt.subplots(
        1, len(keys), figsize=(1.2 + 2.6 * len(keys), 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for key, axes in zip(keys, grid[0], strict=True):
        given = [trial["params"][key] for trial in complete]
        plain = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given)
        shown = given if plain else list(map(str, given))
        dots = axes.scatter(shown, values, c=[t["number"] for t in complete], cmap="viridis", edgecolors="white")
        axes.set(xlabel=key.rpartition(".")[2], xscale="log" if key in log else axes.get_xscale())
    grid[0][0].set_ylabel(metric)
    figure.colorbar(dots, ax=grid[0], label="trial")
    return figure


def _curves(plt: Any, result: Mapping[str, Any]) -> Any:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    # The best one last, on top of the others.
    for trial in sorted(result["trials"], key=lambda trial: trial["number"] in result["best"]):
        epochs = sorted(map(int, trial["epochs"]))
        curve = [trial["epochs"][str(epoch)] for epoch in epochs]
        best, pruned = trial["number"] in result["best"], trial["state"] == "pruned"
        style = {"color": RED if best else GREY if pruned else BLUE, "linewidth": 2 if best else 1}
        axes.plot(epochs, curve, marker="x" if pruned else None, markevery=[-1], alpha=1 if best else 0.7, **style)
    axes.set(xlabel="epoch", ylabel=result["metrics"][0])
    axes.xaxis.get_major_locator().set_params(integer=True)
    marks = [("pruned", GREY, "x"), ("to the end", BLUE, None), ("best", RED, None)]
    axes.legend(handles=[plt.Line2D([], [], color=c, marker=m, label=name) for name, c, m in marks], frameon=False)
    return figure
