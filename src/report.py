"""One table over runs, with a page of figures behind it; or the table of all networks.

    python -m src.report logs/train/runs/RUN logs/train/multiruns/SWEEP
    python -m src.report networks data.image_size=224

The first reads what the runs left in their folders (no torch) and writes report.html, report.md, groups.csv and
runs.csv. Runs that differ by seed or fold alone are one row: mean ± deviation.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any

import yaml

from src import cli
from src.record import write_whole
from src.sweeps import summary
from src.sweeps.folder import read_record

# Settings of where a run lies and who watches it; they do not tell configurations apart.
ASIDE = (
    *("paths", "hydra", "logger", "tags", "task_name", "resume", "ckpt_path", "test"),
    *("data.root", "data.download", "data.mirror"),
    *("callbacks.progress_bar", "callbacks.tensorboard_pictures", "callbacks.model_summary"),
)
ACCURACIES = ("val acc", "test acc")
FORMATS = {
    **{"best epoch": ".0f", "val acc": ".2%", "test acc": ".2%"},
    **{"parameters": ",.0f", "images/s": ",.0f", "minutes": ".1f"},
}
CAPTION = "mean ± deviation over n runs; ~ the runs do not tell it from the best row of its data (Welch's t, p ≥ 0.05)"
COLUMNS = 3  # differing overrides that get a column each; more share one
MOST = 24  # runs whose figures go into the page


@dataclass
class Record:
    """What a run's folder says.

    Attributes:
        name: the folder as seen from the one that all runs of the report are in.
        status: done, unfinished, or how its sweep says that it ended.
        overrides: of its command line, without model, data, seed, fold and what is `ASIDE`.
        repeat: seed and fold, such as "seed=3".
        settings: its whole config without seed, fold and what is `ASIDE`.
        numbers: those of `FORMATS` that are known.
        history: "epoch" and each metric of csv/metrics.csv, equally long, NaN where there is no value.
        results: of results.json.
    """

    folder: Path
    name: str
    status: str
    model: str
    data: str
    overrides: dict[str, str]
    repeat: str
    settings: frozenset[tuple[str, str]]
    numbers: dict[str, float]
    history: dict[str, list[float]]
    results: dict[str, Any]


@dataclass
class Group:
    """Finished runs of equal settings; `metrics` and `against_best` are those of `src.sweeps.summary`."""

    runs: list[Record]
    differing: dict[str, str]
    metrics: dict[str, dict[str, Any]]
    against_best: dict[str, dict[str, Any]]

    @property
    def settings(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.differing.items() if value]


def report(paths: Sequence[str | Path], output: Path | None = None) -> tuple[list[Group], list[Record], list[Path]]:
    """Reads runs and folders of runs, and writes the report into `output` (by default report/ in the folder of all).

    Returns:
        The groups, best validation accuracy first; all runs; the files.

    Raises:
        FileNotFoundError: no such folder, or no run in it.
    """
    folders = find_runs(paths)
    given = [Path(path).resolve() for path in paths]
    common = given[0] if len(given) == 1 else Path(os.path.commonpath([folder.resolve() for folder in folders]))
    records = [read_run(folder, common) for folder in folders]
    groups = group(records)
    return groups, records, _write(output or common / "report", groups, records, given)


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders among the folders given and below them."""
    found: set[Path] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f"there is no folder {path}")
        inside = [file.parent.parent for file in path.glob("**/.hydra/config.yaml")]
        if not inside:
            raise FileNotFoundError(f"{path} is no run and holds none: there is no .hydra/config.yaml in or below it")
        found.update(inside)
    return sorted(found, key=lambda folder: [(not p.isdigit(), int(p) if p.isdigit() else p) for p in folder.parts])


def read_run(folder: Path, common: Path) -> Record:
    results = json.loads(path.read_text()) if (path := folder / "results.json").is_file() else {}
    settings = _flat(_yaml(folder / ".hydra/config.yaml"))
    words = results.get("overrides") or _yaml(folder / ".hydra/overrides.yaml") or []
    overrides = {key.lstrip("+~"): value for key, _, value in (word.partition("=") for word in words)}
    choices = (_yaml(folder / ".hydra/hydra.yaml") or {}).get("hydra", {}).get("runtime", {}).get("choices", {})
    metrics, best = results.get("metrics", {}), results.get("best") or {}
    numbers = {
        "best epoch": best.get("epoch"),
        "val acc": best["value"] if best.get("metric") == "val/acc" else metrics.get("val/acc"),
        "test acc": metrics.get("test/acc"),
        "parameters": results.get("parameters"),
        "images/s": results.get("images_per_s"),
        "minutes": results["seconds"] / 60 if "seconds" in results else None,
    }
    return Record(
        folder=folder,
        name=str(folder.resolve().relative_to(common)) if folder.resolve() != common else folder.name,
        status="done" if results else _sweep_status(folder),
        model=str(choices.get("model", settings.get("model._target_", "?"))),
        data=str(choices.get("data", settings.get("data._target_", "?"))),
        overrides={k: v for k, v in overrides.items() if not _aside(k) and k not in ("model", "data")},
        repeat=" ".join(f"{key}={settings[key]}" for key in summary.REPEATS if key in settings),
        settings=frozenset((k, v) for k, v in settings.items() if not _aside(k)),
        numbers={name: float(value) for name, value in numbers.items() if value is not None},
        history=read_history(folder / "csv/metrics.csv"),
        results=results,
    )


def read_history(path: Path) -> dict[str, list[float]]:
    """The training and validation metrics of a csv/metrics.csv, one value an epoch."""
    epochs: dict[int, dict[str, float]] = {}
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                values = {k: float(v) for k, v in row.items() if v and k.startswith(("train/", "val/"))}
                if row["epoch"] and values:
                    epochs.setdefault(int(float(row["epoch"])), {}).update(values)
    names = sorted({name for values in epochs.values() for name in values})
    order = sorted(epochs)
    return {"epoch": [float(e) for e in order], **{n: [epochs[e].get(n, nan) for e in order] for n in names}}


def group(records: Sequence[Record]) -> list[Group]:
    """Finished runs by their settings; by data set, best mean validation accuracy first, compared within each."""
    kinds: dict[frozenset[tuple[str, str]], list[Record]] = {}
    for record in records:
        if record.status == "done":
            kinds.setdefault(record.settings, []).append(record)
    first = [runs[0].overrides for runs in kinds.values()]
    keys = [key for key in dict.fromkeys(k for one in first for k in one) if len({one.get(key) for one in first}) > 1]
    groups = []
    for data in sorted({runs[0].data for runs in kinds.values()}):
        alike = [runs for runs in kinds.values() if runs[0].data == data]
        rows = summary.group((i, [str(i)], run.numbers) for i, runs in enumerate(alike) for run in runs)
        for runs, row in zip(alike, rows, strict=True):
            differing = {key: runs[0].overrides.get(key, "") for key in keys}
            groups.append(Group(runs, differing, row["metrics"], row["against_best"]))
    return sorted(
        groups, key=lambda g: (g.runs[0].data, -g.metrics["val acc"]["mean"] if "val acc" in g.metrics else 1)
    )


def _aside(key: str) -> bool:
    return key in summary.REPEATS or any(key == name or key.startswith((f"{name}.", f"{name}/")) for name in ASIDE)


def _yaml(path: Path) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times quicker, where libyaml is there
    return yaml.load(path.read_text(), loader) if path.is_file() else None


def _flat(node: Any, prefix: str = "") -> dict[str, str]:
    if not isinstance(node, dict):
        return {prefix: str(node)}
    return {
        k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _sweep_status(folder: Path) -> str:
    for job in (read_record(folder.parent) or {"jobs": []})["jobs"]:
        if str(job["number"]) == folder.name and job["status"] != "done":
            return f"{job['status']}: {job['reason']}" if job["reason"] else job["status"]
    return "unfinished"


# The tables, as rows of text


def _cell(one: Group, name: str) -> str:
    if name not in one.metrics:
        return ""
    number, form = one.metrics[name], FORMATS[name]
    text = format(number["mean"], form)
    if number["std"] is not None and (number["std"] > 0 or name in ACCURACIES):
        text = f"{text.rstrip('%')} ± {format(number['std'], form)}"
    unsupported = name in ACCURACIES and one.against_best[name]["supported"] is False
    return f"{text} ~" if unsupported else text


def group_table(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: what a group is, how many runs it has, its numbers."""
    keys = list(groups[0].differing)
    apart = len(keys) <= COLUMNS
    rows = []
    for one in groups:
        first, n = one.runs[0], len(one.runs)
        settings = list(one.differing.values()) if apart else [", ".join(one.settings)]
        numbers = [_cell(one, name) for name in FORMATS]
        rows.append([first.model, first.data, *settings, str(n), *numbers, first.name if n == 1 else ""])
    return ["model", "data", *(keys if apart else ["overrides"]), "n", *FORMATS, "run"], rows


def run_table(records: Sequence[Record], keys: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows, one a run, numbers unrounded."""
    rows = []
    for record in records:
        numbers = [f"{record.numbers[name]:.10g}" if name in record.numbers else "" for name in FORMATS]
        about = [str(record.results.get(name) or "") for name in ("device", "git_commit")]
        settings = [record.overrides.get(key, "") for key in keys]
        rows.append([record.name, record.status, record.model, record.data, *settings, record.repeat, *numbers, *about])
    return ["run", "status", "model", "data", *keys, "repeat", *FORMATS, "device", "git commit"], rows


def _write(output: Path, groups: list[Group], records: list[Record], given: Sequence[Path]) -> list[Path]:
    keys = list(groups[0].differing) if groups else []
    runs = run_table(records, keys)
    heading = ["model", "data", *keys, "n", *(part for name in FORMATS for part in (name, f"{name} deviation"))]
    rows = []
    for one in groups:
        numbers = [one.metrics.get(name, {}).get(part) for name in FORMATS for part in ("mean", "std")]
        rows.append([one.runs[0].model, one.runs[0].data, *one.differing.values(), len(one.runs), *numbers])
    texts = {
        "groups.csv": _csv(heading, rows),
        "runs.csv": _csv(*runs),
        "report.md": (f"{_markdown(*group_table(groups))}\n{CAPTION}\n\n" if groups else "") + _markdown(*runs),
        "report.html": _page(groups, records, given),
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(output / name, text)
    return [output / name for name in texts]


def _csv(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([heading, *rows])
    return text.getvalue()


def _markdown(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _page(groups: list[Group], records: list[Record], given: Sequence[Path]) -> str:
    from src import figures, page

    parts = [page.table(*group_table(groups), caption=CAPTION)] if groups else []
    for data in dict.fromkeys(one.runs[0].data for one in groups):
        alike = [one for one in groups if one.runs[0].data == data]
        histories = {", ".join([g.runs[0].model, *g.settings]): [run.history for run in g.runs] for g in alike}
        if sum(len(one.runs) for one in alike) > 1:
            parts.append(page.picture(figures.compare(histories, data).png, f"validation on {data}"))
    for folder in given:
        if not (folder / ".hydra").is_dir():
            for path in sorted([*folder.glob("*.png"), *folder.glob("figures/*.png")]):
                parts.append(page.picture(path.read_bytes(), f"{folder.name}: {path.stem}"))

    shown = [run for one in groups for run in one.runs] + [run for run in records if run.status != "done"]
    if len(shown) > MOST:
        best = [max(one.runs, key=lambda run: run.numbers.get("val acc", 0)) for one in groups]
        shown = best[:MOST]
        parts.append(page.note(f"Figures of the best run of each group, {len(shown)} of {len(records)} runs."))
    for run in shown:
        heading = f"{run.model} on {run.data}, {run.repeat}: {run.name}"
        parts.append(page.section(heading, _run_parts(run), opened=run is shown[0]))
    keys = list(groups[0].differing) if groups else []
    parts.append(page.section(f"All {len(records)} runs", [page.table(*run_table(records, keys))]))
    return page.render(f"{len(records)} run{'s' * (len(records) != 1)}", parts)


FIRST = ("confusion_matrix", "reliability", "per_class", "most_confident_wrong", "most_confident_right")


def _run_parts(run: Record) -> list[str]:
    from src import figures, page

    about = {
        "status": run.status, "folder": str(run.folder), "command": run.results.get("command"),
        "device": run.results.get("device"), "git commit": run.results.get("git_commit"),
        "versions": ", ".join(f"{k} {v}" for k, v in run.results.get("versions", {}).items()),
    }  # fmt: skip
    parts = [page.facts({name: str(value) for name, value in about.items() if value})]
    if run.history["epoch"]:
        parts.append(page.picture(figures.curves(run.history).png, "loss and accuracy"))
    rank = {name: number for number, name in enumerate(FIRST)}
    pictures = sorted((run.folder / "figures").glob("*.png"), key=lambda p: (rank.get(p.stem, len(rank)), p.name))
    parts += [page.picture(path.read_bytes(), path.stem.replace("_", " ")) for path in pictures]
    if not pictures:
        parts.append(page.note(f"python -m src.eval run={run.folder} adds the confusion matrix and example images."))
    return parts


def _print(heading: Sequence[str], rows: Iterable[Sequence[str]], title: str, left: int) -> None:
    """A table on the screen; all but the first `left` columns and the last to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=240)
    table = Table(title=title, title_justify="left")
    for number, name in enumerate(heading):
        table.add_column(name, justify="left" if number < left or name == "run" else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


# The table of networks


def networks(overrides: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Sizes of the networks of conf/model, for 1,000 classes at 224 px unless the overrides say otherwise.

    Returns:
        A row (see `measure`) with its `network` for each, and why the others could not be built.
    """
    import torch
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    chosen = [word.removeprefix("model=").split(",") for word in overrides if word.startswith("model=")]
    names = chosen[-1] if chosen else sorted(path.stem for path in (cli.CONF / "model").glob("*.yaml"))
    others = [word for word in overrides if not word.startswith("model=")]
    rows, failed = [], {}
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        for name in names:
            cfg = compose("train", [f"model={name}", "data.num_classes=1000", "data.image_size=224", *others])
            config = OmegaConf.to_container(cfg.model.network, resolve=True)
            try:
                with torch.device("meta"):  # shapes without memory or work
                    rows.append({"network": name, **measure(instantiate(config, _convert_="all"), cfg.data.image_size)})
            except Exception as error:
                cause = cli.user_error(error)
                if cause is None:
                    raise
                failed[name] = str(cause).splitlines()[0]
    return rows, failed


def measure(network: Any, image_size: int) -> dict[str, Any]:
    """What one image costs a network in eval mode, where auxiliary heads do not run. The network is on "meta".

    `parameters` of the layers that run; `connected`, those of fully connected layers among them; `multiply_adds` of
    convolutions and matrix products; `activations`, bytes that the backward pass keeps in float32; `depth`, the layers
    with weights on the longest way from image to logits.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network.eval()
    ran: list[torch.nn.Module] = []
    hooks = [m.register_forward_pre_hook(lambda module, _: ran.append(module)) for m in network.modules()]
    own = {p.untyped_storage()._cdata for p in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        logits = network(torch.zeros(1, 3, image_size, image_size, device="meta"))
    for hook in hooks:
        hook.remove()
    parameters = {p: type(m) for m in ran for p in m.parameters(recurse=False)}
    return {
        "parameters": sum(p.numel() for p in parameters),
        "connected": sum(p.numel() for p, layer in parameters.items() if issubclass(layer, torch.nn.Linear)),
        "multiply_adds": counter.get_total_flops() // 2,
        "activations": sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own),
        "depth": _depth(logits.grad_fn),
    }


def _depth(last: Any) -> int:
    """Most convolutions and matrix products on a way back through the graph."""
    depth: dict[Any, int] = {}
    stack = [last]
    while stack:
        node = stack[-1]
        before = [parent for parent, _ in node.next_functions if parent is not None]
        missing = [parent for parent in before if parent not in depth]
        if missing:
            stack += missing
            continue
        stack.pop()
        weighted = node.name().startswith(("Convolution", "Addmm", "Mm"))
        depth[node] = weighted + max((depth[parent] for parent in before), default=0)
    return depth[last]


def _print_networks(overrides: Sequence[str]) -> None:
    rows, failed = networks(overrides)
    heading = ["network", "parameters", "fully connected", "multiply-adds", "activations", "depth"]
    cells = []
    for row in rows:
        share = row["connected"] / max(row["parameters"], 1)
        connected = f"{row['connected']:,} ({share:3.0%})"
        costs = [f"{row['multiply_adds'] / 1e9:,.3f} G", f"{row['activations'] / 2**20:,.1f} MiB", str(row["depth"])]
        cells.append([row["network"], f"{row['parameters']:,}", connected, *costs])
    options = {"data.image_size": "224", "data.num_classes": "1000", **dict(w.split("=", 1) for w in overrides)}
    size, classes = options["data.image_size"], options["data.num_classes"]
    _print(heading, cells, f"one image of {size} px, {classes} classes, without auxiliary heads", left=1)
    for name, reason in failed.items():
        print(f"left out: {name}: {reason}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m src.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", metavar="RUN|FOLDER", help='run folders and folders of runs, or "networks"')
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to write (report/ in the runs' own folder)")
    arguments = parser.parse_args()
    try:
        if arguments.paths[0] == "networks":
            _print_networks(arguments.paths[1:])
            return
        groups, records, files = report(arguments.paths, arguments.out)
    except Exception as error:
        cause = cli.user_error(error)
        if cause is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"error: {cli.explain(cause, 'train')}", file=sys.stderr)
        sys.exit(1)
    if groups:
        heading, rows = group_table(groups)
        _print(heading, rows, "", left=heading.index("n"))
        print(CAPTION)
    for record in records:
        if record.status != "done":
            print(f"{record.status}: {record.folder}")
    for path in files:
        print(path)


if __name__ == "__main__":
    main()
