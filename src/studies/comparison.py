"""Runs compared on the same images, by the predictions.csv of each. Loads no torch.

Runs are records of `src.report`: of each its folder, its name and its settings.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.evaluation.comparison import differences, other_images
from src.evaluation.intervals import deviations
from src.runs.evaluated import read_answers
from src.runs.folder import RunError, write_csv, write_whole
from src.runs.table import Row, differing, holm, markdown, shown, shown_interval

CAPTION = (
    "difference: how much more often the first is right than the second, with the 95 % interval of a bootstrap over "
    "images, and over runs where there are several; p: McNemar's exact test of two single runs, the bootstrap "
    "otherwise, corrected for the number of pairs, or of pairs and classes (Holm)"
)
MOST = 20  # classes on a terminal


def answers(runs: Sequence[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The labels (N,) of the test images, and whether each of the runs is right on them (R, N).

    Raises:
        RunError: a run has not been evaluated, or on other images: their labels in order, or their brightness where
            the runs see them at one size, are not the same.
    """
    first, *others = frames = [read_answers(run.folder) for run in runs]
    sizes = [[run.settings.get(f"data.{key}") for key in ("image_size", "resize")] for run in runs]
    for run, size, frame in zip(runs[1:], sizes[1:], others, strict=True):
        columns = ("label", "brightness") if size == sizes[0] else ("label",)
        if told := other_images(first, frame, columns):
            again = "if its data changed since, python -m src.eval run=RUN"
            raise RunError(f"{runs[0].name} and {run.name} were tested on different images ({told}); {again}")
    return first["label"].to_numpy(), np.stack([frame["label"] == frame["prediction"] for frame in frames])


def add_deviations(rows: Sequence[Row], runs: Mapping[str, Any]) -> None:
    """Adds `deviations` to the test accuracy of the rows whose runs have all been evaluated, on the same images."""
    for row in rows:
        with suppress(RunError):
            if "test/acc" in row.metrics:
                row.metrics["test/acc"] |= deviations(answers([runs[name] for name in row.runs])[1])


def compare(rows: Sequence[Row], runs: Mapping[str, Any]) -> pd.DataFrame:
    """Every pair of rows, on all images and class by class: `src.evaluation.comparison.differences`, and two columns.

    `class` is "" for all images. `corrected` is p corrected by Holm: on all images for the number of pairs, of the
    classes for the number of pairs times classes.

    Raises:
        ValueError: there is but one configuration.
        RunError: see `answers`.
    """
    if len(rows) < 2:
        raise ValueError("there is nothing to compare: give finished runs of at least two configurations")
    labels, right = answers([runs[name] for row in rows for name in row.runs])
    groups = dict(zip(_names(rows), np.split(right, np.cumsum([row.n for row in rows])[:-1]), strict=True))
    parts = {"": np.full(len(labels), True), **{str(name): labels == name for name in pd.unique(labels)}}
    found = []
    for name, chosen in parts.items():
        found.append(differences({group: each[:, chosen] for group, each in groups.items()}))
        found[-1].insert(2, "class", name)
    frame = pd.concat(found, ignore_index=True)
    whole = frame["class"] == ""
    for family in (whole, ~whole):
        frame.loc[family, "corrected"] = np.array(holm(frame.loc[family, "p"].tolist()), float)
    return frame


def _names(rows: Sequence[Row]) -> list[str]:
    """What tells the rows apart in few words, or else their first runs."""
    keys, names = differing([row.differing for row in rows]), []
    for row in rows:
        given = [f"{key.rpartition('.')[2]}={row.differing[key]}" for key in keys if row.differing[key]]
        name = ", ".join(given) or "default"
        names.append(f"{name} (n = {row.n})" if row.n > 1 else name)
    return names if len(set(names)) == len(names) else [str(row.runs[0]) for row in rows]


def overall(frame: pd.DataFrame) -> pd.DataFrame:
    """The pairs on all images, as text."""
    return _text(frame[frame["class"] == ""]).drop(columns="class")


def by_class(frame: pd.DataFrame) -> pd.DataFrame:
    """The pairs class by class, those that differ most first, as text."""
    part = frame[frame["class"] != ""]
    return _text(part.loc[part["difference"].abs().sort_values(ascending=False, kind="stable").index])


def _text(frame: pd.DataFrame) -> pd.DataFrame:
    ends = frame[["difference", "low", "high"]].to_numpy()
    return pd.DataFrame(
        {
            **{name: frame[name].astype(str) for name in ("first", "second", "class", "images")},
            "accuracy": [
                f"{shown('acc', a)}, {shown('acc', b)}" for a, b in frame[["acc_first", "acc_second"]].to_numpy()
            ],
            "difference": [shown_interval(*row) for row in ends],
            **{f"only {name} right": frame[f"only_{name}"].map("{:,.0f}".format) for name in ("first", "second")},
            "p": frame["corrected"].map(lambda p: f"{p:.2g}" if p else "< 1e-300"),  # no float64 is smaller
        }
    )


def write(frame: pd.DataFrame, output: Path) -> list[Path]:
    """Writes comparison.csv, unrounded, and comparison.md."""
    files = [output / "comparison.csv", output / "comparison.md"]
    write_csv(files[0], frame)
    write_whole(files[1], f"{markdown(overall(frame))}\n{CAPTION}\n\n{markdown(by_class(frame))}")
    return files
