"""What an evaluation leaves in a run folder, and others read. It may have come from somebody else: it is data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.runs.folder import CALIBRATION, EVALUATION, LAST, PREDICTIONS, RESULTS, RunError, read_csv
from src.runs.record import read_results
from src.runs.rules import number

if TYPE_CHECKING:
    import pandas as pd


def read_answers(folder: Path, name: str = PREDICTIONS, complete: bool = False) -> pd.DataFrame:
    """Of each image the label, the prediction, its confidence and the brightness, as a table of predictions has them.

    `attrs["classes"]` of the frame are the names of the classes in order; if `complete` it has all columns.

    Raises:
        RunError: there is no such file, one of another kind, or one from before the run went on.
    """
    path, again = folder / name, f"python -m src.eval run={folder}"
    if not path.is_file():
        raise RunError(f"{folder} has no {name} yet: {again}")
    if name == PREDICTIONS and (folder / EVALUATION).is_file() and not read_evaluation(folder, best_checkpoint(folder)):
        raise RunError(f"{path} is of another checkpoint than the run's best is now: {again}")
    kinds: Any = {"label": str, "prediction": str}  # a class may be called 1, or NA
    kinds |= {"confidence": float, "brightness": float}
    try:
        frame = read_csv(path, usecols=None if complete else list(kinds), dtype=kinds, na_filter=False)
        names = [name[2:] for name in read_csv(path, nrows=0).columns if name.startswith("p_")]
        frame.attrs["classes"] = list(dict.fromkeys([*names, *frame["label"], *frame["prediction"]]))
    except ValueError as error:  # of which pandas' ParserError is one
        raise RunError(f"{path} is no table of predictions with {', '.join(kinds)}: {again}") from error
    if frame.empty:
        raise RunError(f"{path} has no predictions: {again}")
    return frame


def best_checkpoint(folder: Path) -> dict[str, Any]:
    """The best checkpoint of a run that ended, as in `Run.origin`, but for its step; empty for any other run.

    Raises:
        RunError: `results.json` is malformed.
    """
    results = read_results(folder)
    if results.get("status") != "done":
        return {}
    try:
        best = results.get("best") or {"path": LAST, "epoch": results["epochs"] - 1}
        return {"checkpoint": Path(best["path"]).name, "epoch": best["epoch"]}
    except (KeyError, TypeError) as error:
        raise RunError(f"{folder / RESULTS} is no record of a run: {error}") from error


def read_evaluation(folder: Path, origin: dict[str, Any], name: str = EVALUATION) -> dict[str, float]:
    """The metrics of an evaluation, by default that of the run's own test images; empty where there is none.

    Or one of another checkpoint than `origin` says, see `Run.origin`.

    Raises:
        RunError: the file is malformed.
    """
    path = folder / name
    try:
        record = json.loads(path.read_text()) if path.is_file() else {"metrics": {}, **origin}
        metrics: Any = record["metrics"] if all(record[key] == value for key, value in origin.items()) else {}
        return {name: float(value) for name, value in metrics.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is no record of an evaluation: {error}") from error


def read_temperature(folder: Path, origin: dict[str, Any]) -> float:
    """What the logits of a checkpoint are divided by, as `calibration.json` has it.

    Args:
        origin: of the checkpoint, see `Run.origin`.

    Raises:
        RunError: there is no such file, one of another kind, or one for another checkpoint.
    """
    from src.evaluation.calibration import TEMPERATURES

    path, again = folder / CALIBRATION, f"python -m src.eval run={folder} calibrate=true"
    if not path.is_file():
        raise RunError(f"{folder} has no {CALIBRATION} yet: {again}")
    allowed = number(*TEMPERATURES)
    try:
        record = json.loads(path.read_text())
        value, of = record["temperature"], {name: record[name] for name in origin}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunError(f"{path} is no calibration: {again}") from error
    if not allowed.fits(value):
        raise RunError(f"{path} has a temperature that is not {allowed}: {again}")
    if of != origin:
        raise RunError(f"{path} is for {of}, not for {origin}: {again}")
    return float(value)
