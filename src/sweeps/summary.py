"""What a sweep says: one row a configuration, over its seeds or folds.

A row is a dict of plain values:

    config        {key: value} of the overrides in which the rows differ
    overrides     all overrides of the row, without seed and fold
    n             runs that are done; `failed` those that failed; `jobs` the numbers of both
    metrics       {name: {mean, std, half, values}}: sample deviation (n - 1), and half the width of the 95 % interval
                  of the mean (Student's t); None where there is one run
    against_best  {name: {best, p, supported}}: `best` for the row with the best mean. For the others p of Welch's
                  t-test against it, corrected for the number of rows (Holm 1979), and whether p < 0.05: an unsupported
                  difference is one that the seeds do not show. None where a side has one run.

The folds of a data set share images, as STL10's ten do, so their interval is narrower than that of new images.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from src.sweeps.folder import Job, read_record, write_json
from src.sweeps.progress import read_numbers

REPEATS = ("seed", "data.fold")
LEVEL = 0.05
Row = dict[str, Any]
CAPTION = (
    "mean ± deviation over n runs, ± 95 % interval of the mean\n"
    "~ the runs do not tell it from the best row (Welch's t, p ≥ 0.05)"
)


def summarise(folder: Path) -> list[Row]:
    """Rows of a sweep's folder, in the order of its jobs; none for a folder without sweep.json."""
    jobs = [Job(**job) for job in (read_record(folder) or {"jobs": []})["jobs"]]
    runs = [(job.number, job.overrides, read_numbers(folder / str(job.number))) for job in jobs]
    failed = {job.number for job in jobs if job.failed}
    return group(run for run in runs if run[2] is not None or run[0] in failed)


def group(runs: Iterable[tuple[Any, Sequence[str], dict[str, float] | None]]) -> list[Row]:
    """Rows of runs given as (job, overrides, numbers by name); the numbers are None where the run failed."""
    rows: dict[tuple[str, ...], Row] = {}
    for job, overrides, numbers in runs:
        kept = tuple(o for o in overrides if o.partition("=")[0] not in REPEATS and not o.startswith("hydra"))
        row = rows.setdefault(kept, {"overrides": list(kept), "n": 0, "failed": 0, "jobs": [], "metrics": {}})
        row["jobs"].append(job)
        row["failed" if numbers is None else "n"] += 1
        for name, value in (numbers or {}).items():
            row["metrics"].setdefault(name, []).append(value)
    shared = set.intersection(*map(set, rows)) if rows else set()
    for kept, row in rows.items():
        differing = [o.lstrip("+").partition("=") for o in kept if o not in shared]
        row["config"] = {key: value for key, _, value in differing}
        row["metrics"] = {name: spread(values) for name, values in row["metrics"].items()}
        row["against_best"] = {}
    for name in {name for row in rows.values() for name in row["metrics"]}:
        _compare([row for row in rows.values() if name in row["metrics"]], name)
    return list(rows.values())


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean of repeated runs, their sample deviation, and half the 95 % interval of the mean."""
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return {"mean": mean, "std": None, "half": None, "values": list(values)}
    from scipy.special import stdtrit  # Student's quantile; scipy.stats takes three times as long to import

    deviation = statistics.stdev(values)
    half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * deviation / math.sqrt(n)
    return {"mean": mean, "std": deviation, "half": half, "values": list(values)}


def welch(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of Welch's t-test (Welch 1947), None where a side has fewer than two values."""
    if min(len(a), len(b)) < 2:
        return None
    from scipy.special import stdtr

    shares = [statistics.variance(values) / len(values) for values in (a, b)]
    difference = abs(statistics.fmean(a) - statistics.fmean(b))
    if sum(shares) == 0:
        return float(difference == 0)
    degrees = sum(shares) ** 2 / sum(share**2 / (len(values) - 1) for share, values in zip(shares, (a, b), strict=True))
    return 2 * float(stdtr(degrees, -difference / math.sqrt(sum(shares))))


def holm(given: Sequence[float | None]) -> list[float | None]:
    """p values corrected for being several (Holm 1979); None stays."""
    known = sorted((p, i) for i, p in enumerate(given) if p is not None)
    corrected: list[float | None] = [None] * len(given)
    highest = 0.0
    for rank, (p, i) in enumerate(known):
        highest = max(highest, min(1.0, p * (len(known) - rank)))
        corrected[i] = highest
    return corrected


def _compare(rows: Sequence[Row], name: str) -> None:
    best = max(rows, key=lambda row: _rank(row, name))
    best["against_best"][name] = {"best": True, "p": None, "supported": None}
    others = [row for row in rows if row is not best]
    values = best["metrics"][name]["values"]
    for row, p in zip(others, holm([welch(values, row["metrics"][name]["values"]) for row in others]), strict=True):
        row["against_best"][name] = {"best": False, "p": p, "supported": None if p is None else p < LEVEL}


def _rank(row: Row, name: str) -> float:
    if name not in row["metrics"]:
        return -math.inf
    less_is_better = "loss" in name or name in ("seconds", "parameters")
    return -row["metrics"][name]["mean"] if less_is_better else row["metrics"][name]["mean"]


def write(folder: Path) -> list[Row]:
    """Writes summary.json and summary.csv into a sweep's folder and returns their rows."""
    rows = summarise(folder)
    write_json(folder / "summary.json", rows)
    keys, names = _columns(rows, "config"), _columns(rows, "metrics")
    parts = ("mean", "std", "half")
    with (folder / "summary.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*keys, "n", "failed", *(f"{name} {part}" for name in names for part in parts)])
        for row in rows:
            figures = [row["metrics"].get(name, {}).get(part) for name in names for part in parts]
            writer.writerow([*(row["config"].get(key) for key in keys), row["n"], row["failed"], *figures])
    return rows


def table(rows: Sequence[Row], metric: str | None, most: int | None = None) -> Any:
    """A rich table of the rows, or the best `most`: the metric that the sweep is about, and the test accuracy."""
    from rich.markup import escape
    from rich.table import Table

    shown = [name for name in dict.fromkeys((metric or "", "test/acc")) if name in _columns(rows, "metrics")]
    if most is not None:
        rows = sorted(rows, key=lambda row: _rank(row, metric or ""), reverse=True)[:most]
    keys = _columns(rows, "config")
    several = any(row["n"] > 1 for row in rows)
    grid = Table(caption=CAPTION if several else None, caption_justify="left")
    for key in keys:
        last = key.rpartition(".")[2]
        alone = sum(other.rpartition(".")[2] == last for other in keys) == 1
        longest = max(len(_short(row["config"].get(key, ""))) for row in rows)
        grid.add_column(last if alone else key, overflow="fold", min_width=min(longest, 16))
    grid.add_column("n", justify="right", no_wrap=True)
    for name in shown:
        grid.add_column(name, no_wrap=True)
        if several:
            grid.add_column("95 %", no_wrap=True)
    for row in rows:
        count = str(row["n"]) + (f" of {row['n'] + row['failed']}" if row["failed"] else "")
        cells = [cell for name in shown for cell in _cells(row, name)[: 1 + several]]
        grid.add_row(*(escape(_short(row["config"].get(key, ""))) for key in keys), count, *cells)
    return grid


def _columns(rows: Sequence[Row], part: str) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row[part]))


def _short(value: str) -> str:
    """A value with at most four digits after the first, for people."""
    try:
        return value if len(value) < 8 else f"{float(value):.5g}"
    except ValueError:
        return value


def _cells(row: Row, name: str) -> tuple[str, str]:
    figures = row["metrics"].get(name)
    if figures is None:
        return "", ""
    if figures["std"] is None:
        return f"{figures['mean']:.4f}", ""
    mark = " ~" if row["against_best"][name]["supported"] is False else ""
    return f"{figures['mean']:.4f} ± {figures['std']:.4f}{mark}", f"± {figures['half']:.4f}"
