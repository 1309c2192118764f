"""What the recipes reach, as measured: `conf/experiment/results.csv` and `curves.csv`, and who shows it.

The one has a row for each recipe and model, taken from run folders, the other the epochs of one run of each. The table
and the figure of the README and the line `Measured` at the head of each recipe are made from them. Loads no torch.
"""

import math
import re
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from src.runs import table as tables
from src.runs.evaluated import best_checkpoint, read_evaluation
from src.runs.folder import CONF, EVALUATION, read_csv, write_csv, write_whole
from src.runs.table import Row, shown

FILE, CURVES = CONF / "experiment/results.csv", CONF / "experiment/curves.csv"
README, PICTURE = CONF.parent / "README.md", CONF.parent / ".github/images/results.png"
KEYS = ["experiment", "model"]
TABLE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)
MODEL = re.compile(r"^  - override /model: (\w+)$", re.MULTILINE)
MEASURED = re.compile(r"^# Measured: .*\n(?:#   .*\n)*", re.MULTILINE)
VIEWS = "evaluation_multicrop.json"
BESIDE = ("corruption_acc", "ece")  # of an evaluation with corruptions=all, and of any


def rows_of(rows: Sequence[Row], runs: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a report whose runs had a recipe and were tested, as the file has them.

    Args:
        runs: by the name that the rows know them by, with `folder`, `results` and `differing`.
    """
    lines = []
    for row in _of_recipes(rows, runs):
        alike = [runs[name] for name in row.runs]
        first, said = alike[0].results, alike[0].differing
        views = _evaluated(alike, "acc_tta", VIEWS)
        names = ("seconds", "images_per_s", "matmul_gflops", "utilisation")
        mean = {name: row.metrics.get(name, {}).get("mean", math.nan) for name in names}
        lines.append({
            **{key: said[key] for key in ("experiment", "model", "data")},
            "n": row.n, "acc": row.metrics["test/acc"]["mean"], "std": row.metrics["test/acc"]["std"],
            "acc_views": views["mean"], "std_views": views["std"],
            **{name: _evaluated(alike, name)["mean"] for name in BESIDE},
            "minutes": round(mean["seconds"] / 60, 1), "images_per_s": round(mean["images_per_s"], 1),
            "device": first["device"], "matmul_gflops": round(mean["matmul_gflops"], 1),
            "utilisation": round(mean["utilisation"], 4), "torch": first["versions"]["torch"],
            "commit": ", ".join(dict.fromkeys(str(run.results["git_commit"])[:7] for run in alike)),
            "command": _command(alike),
        })  # fmt: skip
    return pd.DataFrame(lines)


def curves_of(rows: Sequence[Row], runs: Mapping[str, Any]) -> pd.DataFrame:
    """The training accuracy of the first run of each such row after each of its epochs, and the minutes until then.

    Raises:
        ValueError: that run kept no curves.
    """
    lines = []
    for row in _of_recipes(rows, runs):
        run = runs[row.runs[0]]
        if not {"train/acc", "train/images_per_s"} <= set(run.history):
            raise ValueError(f"{run.folder} has no curves: logger.csv or callbacks.throughput was off")
        recipe = {key: run.differing[key] for key in KEYS}
        of_an_image = 1 / run.history["train/images_per_s"]  # its seconds, in each epoch
        minutes = of_an_image.cumsum() / of_an_image.sum() * run.results["train_seconds"] / 60
        for minute, acc in zip(minutes, run.history["train/acc"], strict=True):
            lines.append({**recipe, "minutes": round(minute, 2), "acc": round(acc, 4)})
    return pd.DataFrame(lines, columns=[*KEYS, "minutes", "acc"])


def drawn(curves: pd.DataFrame, results: pd.DataFrame) -> Any:
    """The figure of the curves, the recipe of the best test accuracy first."""
    from src import figures

    lines = {}
    for line in _lines(results.sort_values("acc", ascending=False)):
        own = curves[(curves["experiment"] == line.experiment) & (curves["model"] == line.model)]
        if len(own):
            lines[f"{line.experiment}, test {shown('acc', line.acc)}"] = own["minutes"], own["acc"]
    return figures.over_minutes(lines)


def _of_recipes(rows: Sequence[Row], runs: Mapping[str, Any]) -> list[Row]:
    return [row for row in rows if runs[row.runs[0]].differing.get("experiment") and "test/acc" in row.metrics]


def _command(runs: Sequence[Any]) -> str:
    """What trains runs that differ by `REPEATS` alone, each as a run of its own."""
    words = [word for word in runs[0].results["overrides"] if not word.startswith("hparams_search=")]
    for key in tables.REPEATS:
        values = dict.fromkeys(run.settings.get(key, "") for run in runs)  # of which the default was not given
        if len(values) > 1:
            words = [*(word for word in words if not word.startswith(f"{key}=")), f"{key}={','.join(values)}"]
    return shlex.join(["python", "-m", "src.train", *["-m"] * (len(runs) > 1), *words])


def _evaluated(runs: Sequence[Any], name: str, file: str = EVALUATION) -> dict[str, Any]:
    """The spread of a test metric of the runs' best checkpoints, where all of them were evaluated so."""
    values: list[Any] = []
    for run in runs:
        values.append(read_evaluation(run.folder, best_checkpoint(run.folder), file).get(f"test/{name}"))
    return {"mean": None, "std": None} if None in values else tables.spread(values)


def add(found: pd.DataFrame, file: Path = FILE) -> pd.DataFrame:
    """Puts rows into a file, in the place of those of the same recipe and model, and gives all of it."""
    kept = read_csv(file, dtype={"torch": str, "commit": str}) if file.is_file() else pd.DataFrame(columns=KEYS)
    if len(found):
        other = ~pd.MultiIndex.from_frame(kept[KEYS]).isin(pd.MultiIndex.from_frame(found[KEYS]))
        kept = pd.concat([each for each in (kept[other], found) if len(each)]).sort_values(KEYS, kind="stable")
        write_csv(file, kept)
    return kept


def rendered(frame: pd.DataFrame) -> dict[Path, str]:
    """The texts of the README and of the recipes, as they are with these rows."""
    texts = {README: TABLE.sub(lambda _: tables.markdown(_table(frame)) + "\n", README.read_text())}
    for path in sorted(FILE.parent.glob("*.yaml")):
        text, mine = path.read_text(), frame[frame["experiment"] == path.stem]
        words = [f"{line.model} {_told(line)}" if len(mine) > 1 else _told(line) for line in _lines(mine)]
        if not words:
            alike = frame[frame["model"].isin(MODEL.findall(text)) & (frame["data"] == path.stem.partition("_")[0])]
            others = [f"experiment={line.experiment} {_accuracy(line.acc, line.std)}" for line in _lines(alike)]
            words = ["not yet; the same network, " + " and ".join(others) if others else "not yet"]
        head = f"Measured: {'; '.join(words)}."
        wrapped = textwrap.fill(head, 118, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
        texts[path] = MEASURED.sub(wrapped.replace("\\", r"\\") + "\n", text)
    return texts


def write(rows: Sequence[Row], runs: Mapping[str, Any]) -> list[Path]:
    """Puts rows of a report into the file, and what they say where it is shown; gives the paths of what changed.

    Raises:
        ValueError: none of the runs had a recipe and was tested; see also `curves_of`.
    """
    if runs and not _of_recipes(rows, runs):
        raise ValueError("none of these runs had a recipe (experiment=) and came to its test")
    found, epochs = rows_of(rows, runs), curves_of(rows, runs)
    results, curves = add(found), add(epochs, CURVES)
    texts = rendered(results)
    changed = [path for path, text in texts.items() if text != path.read_text()]
    for path in changed:
        write_whole(path, texts[path])
    if curves.groupby(KEYS).ngroups > 1:  # one alone would be compared with nothing
        from src import figures

        changed.append(figures.save(drawn(curves, results), PICTURE))
    return changed


def _lines(frame: pd.DataFrame) -> Iterable[Any]:
    """Its rows, each with the values of its columns as attributes."""
    return frame.itertuples()


def _accuracy(mean: float, std: float = math.nan) -> str:
    """In percent, with what is known of it; empty where nothing is."""
    return shown("acc", *(part for part in (mean, std) if not pd.isna(part))) if not pd.isna(mean) else ""


def _told(line: Any) -> str:
    """A row as words: accuracy, n, time and machine."""
    words = [f"{_accuracy(line.acc, line.std)} test accuracy"]
    if not pd.isna(line.acc_views):
        words.append(f"{_accuracy(line.acc_views, line.std_views)} with six views")
    words[-1] += f" (n = {line.n})"
    words.append(f"{line.minutes} minutes on {line.device}")
    if not pd.isna(line.utilisation):
        words[-1] += f", at {100 * line.utilisation:.0f} % of its {line.matmul_gflops:,.0f} GFLOP/s"
    commit = "" if pd.isna(line.commit) else f", commit {line.commit}"
    return ", ".join(words) + f", torch {line.torch}{commit}"


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for line in _lines(frame.sort_values("acc", ascending=False)):
        used = "" if pd.isna(line.utilisation) else f"{100 * line.utilisation:.0f} % of {line.matmul_gflops:,.0f}"
        lines.append({
            "experiment": f"`{line.experiment}`", "model": f"`{line.model}`", "n": str(line.n),
            "test accuracy": _accuracy(line.acc, line.std), "six views": _accuracy(line.acc_views, line.std_views),
            "corrupted": _accuracy(line.corruption_acc), "ECE": _accuracy(line.ece), "minutes": str(line.minutes),
            "GFLOP/s used": used, "machine": f"{line.device}, torch {line.torch}",
        })  # fmt: skip
    return pd.DataFrame(lines)
