"""Many runs as one frame: seeds to mean and deviation, Welch's test against the best, and the rows as text.

Runs that differ by `REPEATS` alone are one row: by the seed, or by which fold they are of. The folds of a data set
share images, STL10's ten as those of data.folds, so that their interval is narrower than that of new images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from src.runs.build import mode_of
from src.runs.folder import write_csv, write_json

if TYPE_CHECKING:
    import pandas as pd

REPEATS = ("seed", "data.fold")
BESIDE = ("best epoch", "parameters", "images_per_s", "seconds")  # the numbers shown beside the metrics
LEVEL = 0.05
CAPTION = "mean ± deviation over n runs; ~ the runs do not tell it from the best row (Welch's t, Holm, p ≥ 0.05)"
DEVIATIONS = {"sampling": "± images", "beyond": "± beyond"}  # of the test accuracy, which they stand beside
IMAGES = (
    "; ± images: how far another test set of this size would move it (binomial), ± beyond: what then remains of the "
    "deviation between runs (Jordan 2023), where src.eval has tested them"
)
FORMATS = {
    "parameters": ",.0f",
    "suspects": ",.0f",
    "images_per_s": ",.0f",
    "best epoch": ".0f",
    "seconds": ".1f",
    "minutes": ".1f",
}
Run = tuple[Any, Mapping[str, str], Mapping[str, float] | None]


@dataclass
class Row:
    """One configuration, over its seeds or folds.

    Attributes:
        settings: all that its runs share.
        differing: those of them in which the rows differ.
        runs: the ids of its runs, of which `n` are done and `failed` are not.
        metrics: {name: {mean, std, half, values}}, see `spread`; a report adds what it knows of the test images.
        against_best: {name: {best, p, supported}}. `best` for the row with the best mean; for the others p of Welch's
            t-test against it, corrected for the number of rows (Holm), and whether p < 0.05: an unsupported difference
            is one that the seeds do not show. None where a side has one run.
    """

    settings: dict[str, str]
    differing: dict[str, str] = field(default_factory=dict)
    runs: list[Any] = field(default_factory=list)
    n: int = 0
    failed: int = 0
    metrics: dict[str, dict[str, Any]] = field(default_factory=dict)
    against_best: dict[str, dict[str, Any]] = field(default_factory=dict)


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample deviation (n - 1) and half the width of the 95 % interval of the mean (Student's t)."""
    std = half = None
    if (n := len(values)) > 1:
        from scipy.special import stdtrit  # Student's quantile; scipy.stats takes three times as long to import

        std = float(np.std(values, ddof=1))
        half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * std / n**0.5
    return {"mean": float(np.mean(values)), "std": std, "half": half, "values": list(values)}


def welch(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Two-sided p of Welch's t-test (Welch 1947), None where a side has fewer than two values, or a value is NaN."""
    if min(len(a), len(b)) < 2 or np.isnan([*a, *b]).any():
        return None
    if len(set(a)) == len(set(b)) == 1:
        return float(a[0] == b[0])
    from scipy.stats import ttest_ind_from_stats  # `ttest_ind` warns where all values of a side are equal

    moments = [part for values in (a, b) for part in (np.mean(values), np.std(values, ddof=1), len(values))]
    return float(ttest_ind_from_stats(*moments, equal_var=False).pvalue)


def holm(given: Sequence[float | None]) -> list[float | None]:
    """p values corrected for being several (Holm 1979); None stays."""
    known = sorted((p, i) for i, p in enumerate(given) if p is not None)
    raised = np.maximum.accumulate([p * (len(known) - rank) for rank, (p, _) in enumerate(known)])
    corrected = {i: min(1.0, float(p)) for (_, i), p in zip(known, raised, strict=True)}
    return [corrected.get(i) for i in range(len(given))]


def repeated(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings as all repeats of a run have them. A run of no fold has other images than one of any fold."""
    kept = {key: value for key, value in settings.items() if key not in REPEATS}
    return kept if settings.get("data.fold", "null") in ("null", "None") else {**kept, "data.fold": "any"}


def group(runs: Iterable[Run], modes: Mapping[str, str] | None = None) -> list[Row]:
    """Rows of runs given as (id, settings, numbers by name), in the order of their first runs.

    The numbers are None where the run failed. `modes` has "min" or "max" for metrics that `mode_of` knows otherwise.
    """
    rows: dict[frozenset[tuple[str, str]], Row] = {}
    for run, given, numbers in runs:
        settings = repeated(given)
        row = rows.setdefault(frozenset(settings.items()), Row(settings))
        row.runs.append(run)
        row.n, row.failed = row.n + (numbers is not None), row.failed + (numbers is None)
        for name, value in (numbers or {}).items():
            row.metrics.setdefault(name, {"values": []})["values"].append(value)
    keys = differing([row.settings for row in rows.values()])
    for row in rows.values():
        row.differing = {key: row.settings.get(key, "") for key in keys}
        row.metrics = {name: spread(metric["values"]) for name, metric in row.metrics.items()}
    for name in columns(row.metrics for row in rows.values()):
        best, *others = ranked([row for row in rows.values() if name in row.metrics], name, modes)
        tests = holm([welch(best.metrics[name]["values"], row.metrics[name]["values"]) for row in others])
        for row, p in zip([best, *others], [None, *tests], strict=True):
            row.against_best[name] = {"best": row is best, "p": p, "supported": None if p is None else p < LEVEL}
    return list(rows.values())


def ranked(rows: Sequence[Row], name: str, modes: Mapping[str, str] | None = None) -> list[Row]:
    """The rows, best mean of a metric first, those without a number of it last; `modes` as in `group`."""
    sign = 1 if (modes or {}).get(name, mode_of(name)) == "min" else -1
    order = np.argsort([sign * row.metrics.get(name, {}).get("mean", np.nan) for row in rows], kind="stable")
    return [rows[i] for i in order]  # NaN is sorted last


def columns(parts: Iterable[Mapping[str, Any]]) -> list[str]:
    """The keys of all, in the order in which they come up."""
    return list(dict.fromkeys(key for part in parts for key in part))


def differing(parts: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys in which the parts differ."""
    return [key for key in columns(parts) if len({part.get(key) for part in parts}) > 1]


def shown(name: str, *parts: float) -> str:
    """A number, and its deviation, as people read them: "91.20 ± 0.35 %" for accuracies, known by the name."""
    if "acc" in name.rpartition("/")[2].split("_"):
        return " ± ".join(f"{100 * part:.2f}" for part in parts) + " %"
    form = FORMATS.get(name.rpartition("/")[2], ".4f" if 1e-3 <= abs(parts[0]) < 1e5 else ".4g")
    return " ± ".join(format(part, form) for part in parts)


def shown_interval(value: float, low: float, high: float) -> str:
    """An accuracy, or the difference of two, with the ends of its interval: "92.97 % (92.45 to 93.45)"."""
    return f"{shown('acc', value)} ({100 * low:.2f} to {100 * high:.2f})"


def table(rows: Sequence[Row], names: Sequence[str], interval: bool = False) -> pd.DataFrame:
    """Text: what tells the rows apart, n, and the metrics named, "0.9063 ± 0.0120 ~"; with `interval` also that."""
    import pandas as pd

    last = {key: key.rpartition(".")[2] for key in columns(row.differing for row in rows)}
    taken = ["n", *names, *last.values()]
    frame = {key: [_value(row.differing.get(key, "")) for row in rows] for key in last}
    frame["n"] = [f"{row.n} of {row.n + row.failed}" if row.failed else str(row.n) for row in rows]
    for name in names:
        frame[name] = [_cells(row, name)[0] for row in rows]
        if interval and "/" in name:
            frame[f"{name} 95 %"] = [_cells(row, name)[1] for row in rows]
        for key in DEVIATIONS:
            values = [row.metrics.get(name, {}).get(key) for row in rows]
            if values != [None] * len(rows):
                frame[DEVIATIONS[key]] = ["" if x is None else f"± {shown(name, x)}" for x in values]
    return pd.DataFrame(frame).rename(columns={key: short for key, short in last.items() if taken.count(short) == 1})


def measured(rows: Sequence[Row]) -> list[str]:
    """The metrics of validation and test, or where there are none those of training."""
    names = columns(row.metrics for row in rows)
    return [n for n in names if n.startswith(("val/", "test/"))] or [n for n in names if n.startswith("train/")]


def overview(rows: Sequence[Row], names: Sequence[str] = ()) -> pd.DataFrame:
    """The rows as text: what tells them apart, n, `names` or all metrics and costs, and the run where there is one."""
    names = names or [*measured(rows), *(name for name in BESIDE if any(name in row.metrics for row in rows))]
    return table(rows, names).assign(run=[row.runs[0] * (row.n == 1) for row in rows])


def brief(rows: Sequence[Row], asked: Iterable[str]) -> pd.DataFrame:
    """What a terminal has room for of `overview`: in one column what was given, and of the metrics those asked for.

    Args:
        asked: "val/acc" stands for "test/acc" as well. Without one that was measured, all metrics are shown.
    """
    ends = {name.rpartition("/")[2] for name in asked}
    names = [name for name in measured(rows) if name.rpartition("/")[2] in ends] or measured(rows)
    merged = []
    for row in rows:
        named = {key: row.differing.get(key, "") for key in ("model", "data")}
        given = [f"{key}={value}" for key, value in row.differing.items() if value and key not in named]
        merged.append(replace(row, differing={**named, "given": " ".join(given)}))
    return overview(merged, [*names, "seconds"])


def caption(rows: Sequence[Row]) -> str:
    """What stands below the table of the rows."""
    known = any("sampling" in metric for row in rows for metric in row.metrics.values())
    return CAPTION + IMAGES * known


def _cells(row: Row, name: str) -> tuple[str, str]:
    """Mean and deviation, and the interval; what is the same in all runs, such as parameters, has none."""
    if (metric := row.metrics.get(name)) is None:
        return "", ""
    if metric["std"] is None or (metric["std"] == 0 and "/" not in name):
        return shown(name, metric["mean"]), ""
    mark = " ~" if "/" in name and row.against_best[name]["supported"] is False else ""
    return shown(name, metric["mean"], metric["std"]) + mark, f"± {shown(name, metric['half'])}"


def _value(value: str) -> str:
    """A value with at most five digits, for people."""
    try:
        return value if len(value) < 8 else f"{float(value):.5g}"
    except ValueError:
        return value


def numeric(frame: pd.DataFrame) -> list[bool]:
    """Whether a column of text holds numbers, which stand to the right; a run's name begins with its date."""
    return [all(cell[:1] in "-±0123456789" and "_" not in cell for cell in frame[name]) for name in frame]


def rich_table(frame: pd.DataFrame, title: str = "", caption: str = "") -> Any:
    """A frame of text for a terminal: `rich.print` takes it. On a narrow one the longest cells take more lines.

    Numbers do so only where they would leave the columns of words less than eight characters each.
    """
    from rich import get_console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(title), caption=Text(caption), title_justify="left", caption_justify="left")
    right = dict(zip(frame, numeric(frame), strict=True))
    widths = [max(map(len, [str(name), *frame[name]])) if number else 8 for name, number in right.items()]
    whole = sum(widths) + 3 * len(widths) < get_console().width
    for name, number in right.items():
        column = Text(str(name))
        grid.add_column(column, justify="right" if number else "left", overflow="fold", no_wrap=number and whole)
    for cells in frame.values:
        grid.add_row(*map(Text, cells))
    return grid


def markdown(frame: pd.DataFrame) -> str:
    """A frame of text as a table in Markdown."""
    lines = [frame.columns, ["---"] * frame.shape[1], *frame.values]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def latex(frame: pd.DataFrame) -> str:
    """A frame of text as a LaTeX table, for the package booktabs."""
    sides = "".join("r" if right else "l" for right in numeric(frame))
    styled = frame.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    return styled.to_latex(hrules=True, column_format=sides).replace("±", r"$\pm$")


def write_summary(folder: Path, rows: Sequence[Row]) -> None:
    """Writes summary.json, and summary.csv: mean, deviation and half the interval of every metric, unrounded."""
    import pandas as pd

    records = [{**row.differing, "n": row.n, "failed": row.failed, **row.metrics} for row in rows]
    frame = pd.json_normalize(records, sep=" ")  # columns "val/acc mean", "val/acc std", ...
    plain = frame[[name for name in frame if not str(name).endswith(" values")]]
    write_json(folder / "summary.json", [asdict(row) for row in rows])
    write_csv(folder / "summary.csv", plain)
