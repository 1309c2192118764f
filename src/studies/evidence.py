"""What the recipes reach, as measured: `conf/experiment/results.csv`, and who shows it.

The file has a row for each recipe and model, taken from run folders. The table of the README and the line `Measured` at
the head of each recipe are written from it. Loads no torch.
"""

import math
import re
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from src.runs import table as tables
from src.runs.evaluated import read_evaluation
from src.runs.folder import CONF, read_csv, write_csv, write_whole
from src.runs.table import Row, shown

FILE = CONF / "experiment/results.csv"
README, PICTURE = CONF.parent / "README.md", CONF.parent / ".github/images/results.png"
KEYS = ["experiment", "model"]
TABLE = re.compile(r"(?<=<!-- results -->\n).*?(?=<!-- /results -->)", re.DOTALL)
MODEL = re.compile(r"^  - override /model: (\w+)$", re.MULTILINE)
MEASURED = re.compile(r"^# Measured: .*\n(?:#   .*\n)*", re.MULTILINE)
VIEWS = "evaluation_multicrop.json"


def rows_of(rows: Sequence[Row], runs: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a report whose runs had a recipe and were tested, as the file has them.

    Args:
        runs: by the name that the rows know them by, with `folder`, `results` and `differing`.
    """
    lines = []
    for row in _of_recipes(rows, runs):
        alike = [runs[name] for name in row.runs]
        first, said = alike[0].results, alike[0].differing
        views = [value for value in map(_views, alike) if value is not None]
        seen = tables.spread(views) if len(views) == len(alike) else {"mean": None, "std": None}
        mean = {name: row.metrics.get(name, {}).get("mean", math.nan) for name in ("seconds", "images_per_s")}
        lines.append({
            **{key: said[key] for key in ("experiment", "model", "data")},
            "n": row.n, "acc": row.metrics["test/acc"]["mean"], "std": row.metrics["test/acc"]["std"],
            "acc_views": seen["mean"], "std_views": seen["std"],
            "minutes": round(mean["seconds"] / 60, 1), "images_per_s": round(mean["images_per_s"], 1),
            "device": first["device"], **{name: first.get(name) for name in ("matmul_gflops", "utilisation")},
            "torch": first["versions"]["torch"], "commit": str(first["git_commit"])[:7],
            "command": shlex.join(["python", "-m", "src.train", *first["overrides"]]),  # also of a run that went on
        })  # fmt: skip
    return pd.DataFrame(lines)


def curves(rows: Sequence[Row], runs: Mapping[str, Any]) -> Any:
    """A figure of the first run of each of these rows, the one of the best test accuracy first; None of no rows."""
    from src import figures

    lines = {}
    for row in tables.ranked(_of_recipes(rows, runs), "test/acc"):
        run = runs[row.runs[0]]
        minutes = (run.history["epoch"] + 1) * run.results["train_seconds"] / run.results["epochs"] / 60
        name = f"{run.differing['model']}, test {shown('acc', row.metrics['test/acc']['values'][0])}"
        lines[name] = minutes, run.history["train/acc"]
    return figures.over_minutes(lines) if lines else None


def _of_recipes(rows: Sequence[Row], runs: Mapping[str, Any]) -> list[Row]:
    return [row for row in rows if runs[row.runs[0]].differing.get("experiment") and "test/acc" in row.metrics]


def _views(run: Any) -> float | None:
    """The accuracy of a run's best checkpoint over six views, where that was evaluated."""
    checkpoint = Path((run.results.get("best") or {}).get("path", "last.ckpt")).name
    return read_evaluation(run.folder, checkpoint, VIEWS).get("test/acc_tta")


def add(found: pd.DataFrame, file: Path = FILE) -> pd.DataFrame:
    """Puts rows into the file, in the place of those of the same recipe and model, and gives all of it."""
    kept = read_csv(file, dtype={"torch": str, "commit": str}) if file.is_file() else pd.DataFrame(columns=KEYS)
    if len(found):
        other = ~pd.MultiIndex.from_frame(kept[KEYS]).isin(pd.MultiIndex.from_frame(found[KEYS]))
        kept = pd.concat([each for each in (kept[other], found) if len(each)]).sort_values(KEYS)
        write_csv(file, kept)
    return kept


def rendered(frame: pd.DataFrame) -> dict[Path, str]:
    """The texts of the README and of the recipes, as they are with these rows."""
    texts = {README: TABLE.sub(lambda _: tables.markdown(_table(frame)) + "\n", README.read_text())}
    for path in sorted(FILE.parent.glob("*.yaml")):
        text, mine = path.read_text(), frame[frame["experiment"] == path.stem]
        words = [f"{line.model} {_told(line)}" if len(mine) > 1 else _told(line) for line in mine.itertuples()]
        if not words:
            alike = frame[frame["model"].isin(MODEL.findall(text)) & (frame["data"] == path.stem.partition("_")[0])]
            others = [f"experiment={line.experiment} {_accuracy(line.acc, line.std)}" for line in alike.itertuples()]
            words = ["not yet; the same network, " + " and ".join(others) if others else "not yet"]
        head = f"Measured: {'; '.join(words)}."
        wrapped = textwrap.fill(head, 118, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False)
        texts[path] = MEASURED.sub(wrapped.replace("\\", r"\\") + "\n", text)
    return texts


def write(rows: Sequence[Row], runs: Mapping[str, Any]) -> list[Path]:
    """Puts rows of a report into the file, and what they say where it is shown; gives the paths of what changed.

    Raises:
        ValueError: none of the runs had a recipe and was tested.
    """
    if runs and not _of_recipes(rows, runs):
        raise ValueError("none of these runs had a recipe (experiment=) and came to its test")
    texts = rendered(add(rows_of(rows, runs)))
    changed = [path for path, text in texts.items() if text != path.read_text()]
    for path in changed:
        write_whole(path, texts[path])
    if (figure := curves(rows, runs)) is not None:
        from src import figures

        changed.append(figures.save(figure, PICTURE))
    return changed


def _accuracy(mean: float, std: float) -> str:
    return shown("acc", mean) if pd.isna(std) else shown("acc", mean, std)


def _told(line: Any) -> str:
    """A row as words: accuracy, n, time and machine."""
    words = [f"{_accuracy(line.acc, line.std)} test accuracy"]
    if not pd.isna(line.acc_views):
        words.append(f"{_accuracy(line.acc_views, line.std_views)} with six views")
    words[-1] += f" (n = {line.n})"
    words.append(f"{line.minutes} minutes on {line.device}")
    if not pd.isna(line.utilisation):
        words[-1] += f", at {line.utilisation:.0%} of its {line.matmul_gflops:,.0f} GFLOP/s"
    commit = "" if pd.isna(line.commit) else f", commit {line.commit}"
    return ", ".join(words) + f", torch {line.torch}{commit}"


def _table(frame: pd.DataFrame) -> pd.DataFrame:
    lines = []
    for line in frame.sort_values("acc", ascending=False).itertuples():
        views = "" if pd.isna(line.acc_views) else _accuracy(line.acc_views, line.std_views)
        used = "" if pd.isna(line.utilisation) else f"{line.utilisation:.0%} of {line.matmul_gflops:,.0f}"
        lines.append({
            "experiment": f"`{line.experiment}`", "model": f"`{line.model}`", "n": str(line.n),
            "test accuracy": _accuracy(line.acc, line.std), "six views": views, "minutes": str(line.minutes),
            "GFLOP/s used": used, "machine": f"{line.device}, torch {line.torch}",
        })  # fmt: skip
    return pd.DataFrame(lines)
