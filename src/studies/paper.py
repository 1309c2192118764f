"""What a report writes for a paper: figures without titles, the table, a reproducibility sheet. Loads no torch."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from src import figures
from src.runs import table as tables
from src.runs.evaluated import read_answers
from src.runs.facts import reproducibility
from src.runs.folder import RunError, write_whole
from src.runs.table import Row


def write(
    folder: Path, table: pd.DataFrame, rows: Sequence[Row], runs: Mapping[str, Any], compared: Mapping[str, Any],
    shown: Iterable[Any],
) -> list[Path]:  # fmt: skip
    """Writes all into `folder`, and gives the paths.

    Args:
        table: the rows as text.
        runs: by the name that the rows know them by, with a `folder`, a `history` and `results`.
        compared: by data set, what `figures.compare` takes.
        shown: the runs whose curves, confusion matrix and calibration are drawn.
    """
    texts = {"table.tex": tables.latex(table), "table.md": tables.markdown(table)}
    texts["reproducibility.md"] = reproducibility(rows, {name: run.results for name, run in runs.items()})
    for name, text in texts.items():
        write_whole(folder / name, text)
    drawn = {re.sub(r"\W+", "_", f"compare_{data}"): figures.compare(alike) for data, alike in compared.items()}
    for run in shown:
        name = run.name.replace("/", "_")  # jobs of two sweeps lie in folders of one name
        if len(run.history["epoch"]):
            drawn[f"curves_{name}"] = figures.curves(run.history)
        with suppress(RunError):  # it has not been evaluated
            answers = read_answers(run.folder)
            said, right = (answers["label"], answers["prediction"]), answers["label"] == answers["prediction"]
            drawn[f"confusion_{name}"] = figures.confusion_matrix(*said, answers.attrs["classes"])
            drawn[f"reliability_{name}"] = figures.reliability(answers["confidence"], right)
    files = [path for name, figure in drawn.items() for path in figures.save_for_paper(figure, folder / name)]
    return [folder / name for name in texts] + files
