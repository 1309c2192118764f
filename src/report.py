"""One table over runs, with a page of figures behind it; or their differences on the same images; or all networks.

    python -m src.report logs/train/runs/RUN logs/train/multiruns/SWEEP
    python -m src.report compare RUN_A RUN_B
    python -m src.report networks data.image_size=224
    python -m src.report results logs/train/runs

The first reads what the runs left in their folders (no torch) and writes report.html, report.md, summary.csv,
summary.json and runs.csv. Runs that differ by seed or fold alone are one row: mean ± deviation. With --paper also
paper/: figures without titles as PDF, SVG and PNG, the table as LaTeX, and a reproducibility sheet. The second compares
the rows image by image, in pairs, where `src.eval` has tested their runs, and writes comparison.csv and comparison.md.
The last takes runs of recipes into conf/experiment/results.csv, and from there into the README and the recipes.
"""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from src import cli
from src.data.official import OFFICIAL
from src.runs import table as tables
from src.runs.build import mode_of
from src.runs.folder import find_runs, read_config, write_csv, write_whole
from src.runs.record import read_choices, read_metrics, read_numbers, read_overrides, read_results
from src.runs.rules import RULES
from src.runs.table import REPEATS, Row, repeated
from src.studies import comparison, evidence
from src.studies.networks import SIZE, networks

# Settings of where a run lies and who watches it, as they begin; they do not tell configurations apart.
ASIDE = (
    *("paths.", "hydra.", "hydra/", "logger.", "tags.", "task_name.", "resume.", "resume_sweep.", "ckpt_path."),
    *("test.", "trusted.", "extras.", "data.root.", "data.download.", "data.mirror."),
    *("callbacks.progress_bar.", "callbacks.tensorboard_pictures.", "callbacks.model_summary."),
)
MOST = 10  # runs whose figures go into the page
FILES = ("report.html", "report.md", "summary.csv", "summary.json", "runs.csv")


@dataclass
class Record:
    """What a run's folder says.

    Attributes:
        name: the folder as seen from the one that all runs of the report are in.
        status: done, unfinished, unreadable and why, or how its sweep says that it ended.
        settings: its whole config, flat, without what is `ASIDE`, and the checksum of the test images as `images`.
        differing: its `model`, its `data` and the overrides of its command line, without seed, fold and `ASIDE`; of a
            data set that is no official one also `data.root`.
        numbers: those of `read_numbers`, and `best epoch`; None for a run that did not end.
        history: "epoch" and each metric of its training and validation, a row an epoch.
        results: of results.json.
    """

    folder: Path
    name: str
    status: str
    settings: dict[str, str] = field(default_factory=dict)
    differing: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, float] | None = None
    history: Mapping[str, Any] = field(default_factory=lambda: {"epoch": []})
    results: dict[str, Any] = field(default_factory=dict)


def report(
    paths: Sequence[str | Path], output: Path | None = None, paper: bool = False
) -> tuple[list[Row], dict[str, Record], list[Path]]:
    """Reads runs and folders of runs, and writes the report into `output` (by default report/ in the folder of all).

    Returns:
        The rows, see `compare`; all runs by name; the files.

    Raises:
        FileNotFoundError: no such folder, or no run in it.
    """
    runs, common = read_runs(paths)
    rows, every, output = compare(runs), _every(runs.values()), output or common / "report"
    comparison.add_deviations(rows, runs)
    folders = {run.folder.resolve() for run in runs.values()}
    page = _page(rows, runs, every, [Path(path) for path in paths if Path(path).resolve() not in folders])
    tables.write_summary(output, rows)
    write_csv(output / "runs.csv", every)
    means = f"{tables.markdown(tables.overview(rows))}\n{tables.caption(rows)}\n\n" if rows else ""
    write_whole(output / "report.md", means + tables.markdown(every))
    write_whole(output / "report.html", page)
    files = [output / name for name in FILES]
    if paper:
        from src.studies import paper as papers

        table, compared = tables.overview(rows).drop(columns="run"), _histories(rows, runs)
        files += papers.write(output / "paper", table, rows, runs, compared, _shown(rows, runs))
    return rows, runs, files


def paired(
    paths: Sequence[str | Path], output: Path | None = None
) -> tuple[pd.DataFrame, dict[str, Record], list[Path]]:
    """Compares runs and folders of runs on the same images, and writes that into `output` as `report` does.

    Returns:
        What `src.studies.comparison.compare` found; all runs by name; the files.

    Raises:
        ValueError, RunError, FileNotFoundError: there are no two configurations, tested on the same images.
    """
    runs, common = read_runs(paths)
    found = comparison.compare(compare(runs), runs)
    return found, runs, comparison.write(found, output or common / "report")


def read_runs(paths: Sequence[str | Path]) -> tuple[dict[str, Record], Path]:
    """The runs in and below the folders given, by name, and the folder that all of these are in."""
    if not paths:
        raise ValueError("say which runs: python -m src.report compare RUN_A RUN_B")
    common = Path(os.path.commonpath([Path(path).resolve() for path in paths]))
    _ends.cache_clear()
    return {run.name: run for run in (read_run(folder, common) for folder in find_runs(paths))}, common


def read_run(folder: Path, common: Path) -> Record:
    """What a run's folder says; one that cannot be read has a status that says why, and nothing else."""
    name = str(folder.resolve().relative_to(common)) if folder.resolve() != common else folder.name
    try:
        config, results, numbers = read_config(folder), read_results(folder), read_numbers(folder)
        settings = _telling(pd.json_normalize(config).to_dict("records")[0])
        settings |= {"seed": str(results["seed"])} if "seed" in results else {}  # it may have been drawn
        if isinstance(checksums := results.get("data"), dict) and "test" in checksums:
            settings["images"] = str(checksums["test"])
        choices = read_choices(folder)
        differing = {key: str(choices.get(key, settings.get(f"{key}._target_", "?"))) for key in ("model", "data")}
        words = results.get("overrides") or read_overrides(folder)
        given = dict(word.lstrip("+~").partition("=")[::2] for word in words)
        told = {key: value for key, value in repeated(_telling(given)).items() if key not in ("model", "data")}
        if "data.root" in given and settings.get("data._target_", "").rpartition(".")[2] not in OFFICIAL:
            told["data.root"] = given["data.root"]  # which says what the images are of
        differing |= told
        if numbers is not None and results.get("best"):
            numbers["best epoch"] = float(results["best"]["epoch"])
        status = "done" if numbers is not None else _ends(folder.parent).get(folder.name, "unfinished")
        history: Any = read_metrics(folder).select_dtypes("number").rename_axis("epoch").reset_index()
        return Record(folder, name, status, settings, differing, numbers, history, results)
    except Exception as error:  # whatever one folder holds, the others are reported
        return Record(folder, name, f"unreadable: {error}")


def _telling(settings: Mapping[Any, Any]) -> dict[str, str]:
    """Settings as text, without what is `ASIDE`."""
    return {str(key): str(value) for key, value in settings.items() if not f"{key}.".startswith(ASIDE)}


@cache
def _ends(folder: Path) -> dict[str, str]:
    """How the jobs of a sweep ended, by number; empty for another folder."""
    from src.sweeps import read_jobs

    return {str(job.number): f"{job.status}: {job.reason}".removesuffix(": ") for job in read_jobs(folder)}


def compare(runs: Mapping[str, Record]) -> list[Row]:
    """Finished runs by their settings; by data set, those with the best value of their own metric first.

    Where all images were trained on, that is the one of the test. A row is compared with the best of its data set; it
    differs from the others in what `Record.differing` has.
    """
    done = [run for run in runs.values() if run.numbers is not None]
    bests = [run.results["best"] for run in done if run.results.get("best")]
    modes = {best["metric"]: best.get("mode") or mode_of(best["metric"]) for best in bests}
    rows: list[Row] = []
    for data in sorted({data_of(run.differing) for run in done}):
        alike = [run for run in done if data_of(run.differing) == data]
        found = tables.group([(run.name, run.settings, run.numbers) for run in alike], modes)
        known = tables.columns(row.metrics for row in found)
        chosen = [run.results["best"]["metric"] for run in alike if run.results.get("best")]
        tested = [run.settings.get("optimized_metric", "").replace("val/", "test/") for run in alike]
        metric = next((name for name in [*chosen, *tested, *tables.measured(found)] if name in known), "")
        rows += tables.ranked(found, metric, modes)
    said = [runs[row.runs[0]].differing for row in rows]
    keys = dict.fromkeys(["model", "data", *tables.differing(said)])
    for row, own in zip(rows, said, strict=True):
        row.differing = {key: own.get(key, "") for key in keys}
    return rows


def data_of(differing: Mapping[str, str]) -> str:
    """The data set of a run, whose metrics are compared with those of others on it alone."""
    return " ".join(differing[key] for key in ("data", "data.name") if differing.get(key))


def _every(runs: Iterable[Record]) -> pd.DataFrame:
    """All runs as text, their numbers unrounded."""
    lines = []
    for run in runs:
        origin = {name: run.settings.get(name) for name in REPEATS}
        origin |= {name: run.results.get(name) for name in ("device", "git_commit")}
        lines.append({"run": run.name, "status": run.status, **run.differing, **(run.numbers or {}), **origin})
    frame = pd.DataFrame(lines).astype(object)
    return frame.map(lambda x: "" if pd.isna(x) else f"{x:.10g}" if isinstance(x, float) else str(x))


def _page(rows: list[Row], runs: Mapping[str, Record], every: pd.DataFrame, sweeps: Sequence[Path]) -> str:
    from jinja2 import Environment, FileSystemLoader

    from src import figures

    found: dict[str, Any] = {"groups": tables.overview(rows), "caption": tables.caption(rows)}
    found |= {"histories": _histories(rows, runs), "shown": _shown(rows, runs)}
    pages = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    found |= {"figures": figures, "tables": tables, "pictures": _pictures, "b64encode": b64encode}
    return pages.get_template("report.html").render(**found, sweeps=sweeps, runs=every)


def _pictures(folder: Path) -> list[Path]:
    """The figures of a run's evaluations; one over several views only where there is none of the images alone."""
    found = {path.stem: path for path in sorted(folder.glob("figures/*.png")) if path.stem != "curves"}
    views = tuple(f"_{name}" for name in RULES["tta"].choices)
    return [path for name, path in found.items() if not (name.endswith(views) and name.rpartition("_")[0] in found)]


def _shown(rows: list[Row], runs: Mapping[str, Record]) -> list[Record]:
    return list(runs.values()) if len(runs) <= MOST else [runs[row.runs[0]] for row in rows][:MOST]


def _histories(rows: list[Row], runs: Mapping[str, Record]) -> dict[str, dict[str, list[Any]]]:
    """By data set, and by what tells a row from the others on it, the histories of its runs."""
    histories: dict[str, dict[str, list[Any]]] = {}
    for data in dict.fromkeys(data_of(row.differing) for row in rows):
        alike = [row for row in rows if data_of(row.differing) == data]
        telling = tables.differing([row.differing for row in alike])
        for row in alike:
            told = [f"{key}={row.differing[key]}" for key in telling if row.differing[key]]
            label = ", ".join(told) or f"model={row.differing['model']}"
            if found := [runs[name].history for name in row.runs if len(runs[name].history["epoch"])]:
                histories.setdefault(data, {}).setdefault(label, []).extend(found)
    return histories


def main() -> None:
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=240)
    parser = ArgumentParser("python -m src.report", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="RUN|FOLDER", help="run folders and folders of runs")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (report/ in the runs' own folder)")
    parser.add_argument("--paper", action="store_true", help="write paper/ as well: PDF, SVG, LaTeX and facts")
    args = parser.parse_args()
    with cli.one_line_errors("train", os.environ.get("HYDRA_FULL_ERROR") == "1"):
        taken = {"networks": (), "results": (), "compare": ("out",)}.get(args.paths[0], ("out", "paper"))
        if idle := [name for name in ("out", "paper") if getattr(args, name) and name not in taken]:
            raise ValueError(f"src.report {args.paths[0]} takes no --{idle[0]}")
        if args.paths[0] == "networks":
            costs, failed = networks(args.paths[1:])
            at = " ".join({word.partition("=")[0]: word for word in [*SIZE, *args.paths[1:]]}.values())
            title = f"one image at {at}, without auxiliary heads; memory in bytes"
            console.print(tables.rich_table(costs.map("{:,}".format).reset_index(), title))
            return print(*(f"left out: {name}: {reason}" for name, reason in failed.items()), sep="\n")
        if args.paths[0] == "results":
            runs = read_runs(args.paths[1:])[0] if args.paths[1:] else {}
            return print(*evidence.write(compare(runs), runs), sep="\n")
        if args.paths[0] == "compare":
            found, runs, files = paired(args.paths[1:], args.out)
            console.print(tables.rich_table(comparison.overall(found), caption=comparison.CAPTION))
            worst = comparison.by_class(found).head(comparison.MOST)
            console.print(tables.rich_table(worst, "the classes that differ most"))
        else:
            rows, runs, files = report(args.paths, args.out, args.paper)
            if rows:
                asked = {run.settings.get("optimized_metric", "") for run in runs.values()}
                console.print(tables.rich_table(tables.brief(rows, asked), caption=tables.caption(rows)))
    unfinished = [f"{run.status}: {run.folder}" for run in runs.values() if run.numbers is None]
    print(*unfinished, *files, sep="\n")


if __name__ == "__main__":
    main()
