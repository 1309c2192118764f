"""What run folders have on record, in words for readers: a reproducibility sheet of many runs, a model card of one.

Only what was measured or recorded is said; nothing is claimed of what a model is good for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.runs import table as tables
from src.runs.build import SPLITTING
from src.runs.evaluated import read_evaluation
from src.runs.table import Row, shown

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from src.runs.run import Run


def reproducibility(rows: Sequence[Row], results: Mapping[Any, Mapping[str, Any]]) -> str:
    """The facts that the checklists of NeurIPS and ACL ask for, as Markdown.

    Args:
        rows: of finished runs.
        results: `results.json` of every run, by the id that the rows know it by; empty of one that did not end.
    """
    done = [results[run] for row in rows for run in row.runs if results[run]]
    hours = [_hours(each) for each in done]
    unfinished = sum(not each for each in results.values())
    longest = max(hours, default=0)
    computing = f"Finished runs: {len(done)}, which took {sum(hours):.2f} hours in all, the longest {longest:.2f}."
    if unfinished:
        computing += f" Without an end: {unfinished} more, whose time is on no record."
    parts = {
        "Hardware and time": [computing, "", tables.markdown(_hardware(done))],
        "Configurations": [tables.markdown(_configurations(rows, results)), *_commands(rows, results)],
        "What was varied": [_varied(rows)],
        "Data and splits": [tables.markdown(_data(rows, results)), "Images by the head of their SHA-256.", ""],
        "Software": [_software(done)],
    }
    return "# Reproducibility sheet\n" + "".join(f"\n## {name}\n\n" + "\n".join(lines) for name, lines in parts.items())


def _hours(results: Mapping[str, Any]) -> float:
    return (results.get("seconds") or 0) / 3600


def _hardware(done: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    lines = [(str(each.get("device")), str(each.get("precision")), _hours(each)) for each in done]
    frame = pd.DataFrame(lines, columns=["device", "precision", "hours"])
    found = frame.groupby(["device", "precision"])["hours"].agg(runs="size", hours="sum").reset_index()
    return found.astype({"runs": str}).assign(hours=found["hours"].map("{:.2f}".format))


def _configurations(rows: Sequence[Row], results: Mapping[Any, Mapping[str, Any]]) -> pd.DataFrame:
    """A row each: what tells it apart, its runs, parameters, criterion, results with deviation and interval."""
    names = [name for name in tables.columns(row.metrics for row in rows) if name.startswith(("val/", "test/"))]
    frame = tables.table(rows, names, interval=True)
    best = [results[row.runs[0]].get("best") or {} for row in rows]
    frame["selected by"] = [f"{each['mode']} {each['metric']}" if each else "last epoch" for each in best]
    for name, form in (("parameters", "{:,.0f}"), ("epochs", "{:.0f}")):
        means = (row.metrics.get(name, {}).get("mean") for row in rows)
        frame[name] = ["" if value is None else form.format(value) for value in means]
    frame["hours each"] = [f"{sum(_hours(results[run]) for run in row.runs) / len(row.runs):.3f}" for row in rows]
    frame["seeds"] = [", ".join(sorted({str(results[run].get("seed")) for run in row.runs})) for row in rows]
    return frame


def _commands(rows: Sequence[Row], results: Mapping[Any, Mapping[str, Any]]) -> list[str]:
    commands = dict.fromkeys(str(results[row.runs[0]].get("command")) for row in rows)
    return ["The command of the first run of each:", "", *(f"    {command}" for command in commands), ""]


def _varied(rows: Sequence[Row]) -> str:
    """Which values of a setting the runs have: the search space as far as it was tried."""
    lines = []
    for key in tables.columns(row.differing for row in rows):
        values = list(dict.fromkeys(row.differing.get(key, "") or "(not set)" for row in rows))
        if len(values) > 1:
            lines.append(f"- `{key}`: {', '.join(values)}\n")
    return "".join(lines) or "Nothing but the seed.\n"


def _data(rows: Sequence[Row], results: Mapping[Any, Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    lines = {}
    for row in rows:
        of_data = {name: row.settings.get(f"data.{name}", "") for name in SPLITTING["val"]}
        line = {"data": row.settings.get("data._target_", "").rpartition(".")[2], **of_data}
        checksums = results[row.runs[0]].get("data")
        if isinstance(checksums, dict):
            line |= {f"{split} images": str(checksum)[:12] for split, checksum in checksums.items()}
        lines[tuple(line.values())] = line
    frame = pd.DataFrame(list(lines.values())).fillna("").replace({"None": "", "null": ""})
    return frame.loc[:, (frame != "").any()]


def _software(done: Sequence[Mapping[str, Any]]) -> str:
    import pandas as pd

    frame = pd.DataFrame([{**(each.get("versions") or {}), "commit": each.get("git_commit")} for each in done])
    frame = frame.fillna("not recorded").astype(str)
    lines = [f"- {name}: {', '.join(frame[name].unique())}\n" for name in frame]
    return "".join(lines) + "\nA commit with + had files that differ from it.\n"


def model_card(run: Run, network: nn.Module, file: Path, takes: str, gives: str) -> str:
    """A card for the exported network of a run, as Markdown.

    Args:
        network: what was exported of it.
        file: that it was exported to.
        takes, gives: the input and the output, in words.
    """
    results, config = run.results, run.config
    data = config.data._target_.rpartition(".")[2]
    count = sum(parameter.numel() for parameter in network.parameters())
    classes = ", ".join(run.classes[:20]) + (f" and {len(run.classes) - 20} more" if len(run.classes) > 20 else "")
    facts: dict[str, Any] = {
        "file": f"`{file.name}`",
        "network": f"`{type(network).__module__}.{type(network).__name__}`, {count:,} parameters",
        "classes": f"{len(run.classes)}: {classes}",
        "takes": takes,
        "gives": gives,
        "trained on": f"{data}, at {config.data.image_size} px",
        "checkpoint": f"`{run.checkpoint_path.name}`, after epoch {run.checkpoint['epoch']}",
    }
    if results:
        facts |= {
            "seed": results.get("seed"),
            "epochs": results.get("epochs"),
            "training": f"{_hours(results):.2f} hours on {results.get('device')}",
            "precision": results.get("precision"),
            "command": f"`{results.get('command')}`",
            "commit": results.get("git_commit"),
            "versions": ", ".join(f"{name} {version}" for name, version in (results.get("versions") or {}).items()),
        }
    told = [f"- **{name}**: {value}" for name, value in facts.items() if value is not None]
    measured = {**results.get("metrics", {}), **read_evaluation(run.folder, run.origin)}
    tested = [f"- {name}: {shown(name, value)}" for name, value in measured.items() if name.startswith("test/")]
    tested = tested or ["Nothing on test images: see `src.eval`."]
    return "\n".join([f"# {type(network).__name__} on {data}\n", *told, "", "## Measured", "", *tested, ""])
