"""The report reads what runs leave behind: its numbers, its grouping, and a page that needs no network."""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from src import report
from src.report import find_runs, group, group_table, measure, networks, read_history, read_run
from tests.conftest import run_command


def make_run(
    folder: Path, *overrides: str, val: float = 0.9, test: float = 0.8, model: str = "vgg11", **more: Any
) -> Path:
    """A run folder as a training leaves it, but for the weights. `data=` and `seed=` come from the overrides."""
    given = dict(word.split("=", 1) for word in overrides)
    data = given.get("data", "digits")
    config: dict[str, Any] = {
        "seed": int(given.get("seed", 0)), "tags": ["dev"], "paths": {"output_dir": str(folder)},
        "data": {"_target_": data, "seed": "${seed}"}, "model": {"_target_": model},
        "optimizer": {"lr": float(given.get("optimizer.lr", 0.1))}, **more,
    }  # fmt: skip
    (folder / ".hydra").mkdir(parents=True)
    choices = {"hydra": {"runtime": {"choices": {"model": model, "data": data}}}}
    files = {"config": config, "overrides": [f"model={model}", *overrides], "hydra": choices}
    for name, content in files.items():
        (folder / f".hydra/{name}.yaml").write_text(yaml.safe_dump(content))
    (folder / "csv").mkdir()
    lines = ["epoch,step,lr-SGD,train/loss,train/acc,val/loss,val/acc,test/acc", ",0,0.1,,,,,"]
    for epoch in range(3):
        lines += [f"{epoch},{epoch},,,,{1 - epoch / 10},{val - 0.02 + epoch / 100},", f"{epoch},{epoch},,2,0.5,,,"]
    (folder / "csv/metrics.csv").write_text("\n".join([*lines, f"3,3,,,,,,{test}"]) + "\n")
    results = {
        "status": "done", "metrics": {"val/acc": val, "test/acc": test}, "epochs": 3, "seconds": 90.0,
        "best": {"metric": "val/acc", "value": val, "epoch": 2, "path": "checkpoints/epoch_002.ckpt"},
        "images_per_s": 1000.0, "parameters": 1234567, "device": "cpu", "versions": {"torch": "2.15"},
        "overrides": [f"model={model}", *overrides], "command": "python -m src.train", "git_commit": "abc",
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def groups_of(folder: Path) -> list[report.Group]:
    return group([read_run(run, folder) for run in find_runs([folder])])


def test_runs_that_differ_by_seed_alone_are_one_row(tmp_path: Path) -> None:
    accuracies = [0.90, 0.93, 0.96]
    for seed, value in enumerate(accuracies):
        make_run(tmp_path / str(seed), f"seed={seed}", "optimizer.lr=0.1", val=value, test=value - 0.1)
    make_run(tmp_path / "3", "seed=0", "optimizer.lr=0.5", val=0.5, test=0.4)
    best, other = groups_of(tmp_path)
    assert [len(best.runs), len(other.runs)] == [3, 1]
    assert best.metrics["val acc"]["mean"] == pytest.approx(0.93)
    assert best.metrics["val acc"]["std"] == pytest.approx(statistics.stdev(accuracies))
    heading, rows = group_table([best, other])
    assert heading == ["model", "data", "optimizer.lr", "n", *report.FORMATS, "run"]
    assert rows[0] == [
        "vgg11",
        "digits",
        "0.1",
        "3",
        "2",
        "93.00 ± 3.00%",
        "83.00 ± 3.00%",
        "1,234,567",
        "1,000",
        "1.5",
        "",
    ]
    assert rows[1] == ["vgg11", "digits", "0.5", "1", "2", "50.00%", "40.00%", "1,234,567", "1,000", "1.5", "3"]


def test_a_default_written_out_is_the_same_configuration(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "seed=0")
    make_run(tmp_path / "b", "seed=1", "optimizer.lr=0.1")
    assert len(groups_of(tmp_path)) == 1


def test_where_a_run_lies_is_no_difference(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "seed=0", "paths.log_dir=x", task_name="one", logger={"wandb": {}})
    make_run(tmp_path / "b", "seed=1", task_name="two")
    assert len(groups_of(tmp_path)) == 1


def test_differences_the_seeds_do_not_support_are_marked_within_a_data_set(tmp_path: Path) -> None:
    for i, (lr, data, values) in enumerate([
        ("0.1", "digits", (0.90, 0.92, 0.91)), ("0.2", "digits", (0.89, 0.92, 0.90)),
        ("0.3", "digits", (0.50, 0.52, 0.51)), ("0.1", "stl10", (0.60, 0.80, 0.70)),
    ]):  # fmt: skip
        for seed, value in enumerate(values):
            make_run(
                tmp_path / f"{i}{seed}", f"seed={seed}", f"optimizer.lr={lr}", f"data={data}", val=value, test=value
            )
    heading, rows = group_table(groups_of(tmp_path))
    assert heading[:3] == ["model", "data", "optimizer.lr"]
    marked = {(row[1], row[2]): "~" in row[heading.index("val acc")] for row in rows}
    assert marked == {
        ("digits", "0.1"): False,
        ("digits", "0.2"): True,
        ("digits", "0.3"): False,
        ("stl10", "0.1"): False,
    }


def test_many_differing_overrides_share_a_column(tmp_path: Path) -> None:
    for i in range(2):
        make_run(tmp_path / str(i), *(f"data.a{k}={i}" for k in range(5)), extra=i)
    heading, rows = group_table(groups_of(tmp_path))
    assert heading[2] == "overrides"
    assert rows[0][2] == "data.a0=0, data.a1=0, data.a2=0, data.a3=0, data.a4=0"


def test_history_has_one_value_an_epoch_and_no_test_row(tmp_path: Path) -> None:
    history = read_history(make_run(tmp_path / "run", val=0.5) / "csv/metrics.csv")
    assert history["epoch"] == [0, 1, 2]
    assert history["val/loss"] == [1.0, 0.9, 0.8]
    assert history["train/acc"] == [0.5] * 3
    assert set(history) == {"epoch", "train/loss", "train/acc", "val/loss", "val/acc"}
    assert read_history(tmp_path / "nowhere.csv") == {"epoch": []}


def test_an_unfinished_run_is_named_with_its_reason_and_stays_out_of_the_means(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "seed=0")
    for number in (1, 2):
        (make_run(tmp_path / str(number), f"seed={number}") / "results.json").unlink()
    jobs = [{"number": 0, "status": "done", "reason": ""}, {"number": 1, "status": "failed", "reason": "no memory"}]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    groups, records, _ = report.report([tmp_path])
    assert [len(one.runs) for one in groups] == [1]
    assert [run.status for run in records] == ["done", "failed: no memory", "unfinished"]


def test_runs_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        make_run(tmp_path / str(number), f"seed={number}")
    assert [run.name for run in find_runs([tmp_path])] == ["1", "2", "10"]
    assert len(find_runs([tmp_path, tmp_path / "2"])) == 3


def test_what_holds_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(FileNotFoundError, match="is no run and holds none"):
        find_runs([tmp_path])


def test_csv_has_plain_numbers_for_every_run_and_group(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / str(seed), f"seed={seed}", val=0.5 + seed / 10)
    _, _, files = report.report([tmp_path], tmp_path / "out")
    assert {path.name for path in files} == {"groups.csv", "runs.csv", "report.md", "report.html"}
    with (tmp_path / "out/runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["repeat"], float(row["val acc"])) for row in rows] == [
        ("0", "seed=0", 0.5),
        ("1", "seed=1", 0.6),
    ]
    with (tmp_path / "out/groups.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["val acc"]) == pytest.approx(0.55)
    assert float(row["val acc deviation"]) == pytest.approx(statistics.stdev([0.5, 0.6]))


def test_the_page_is_self_contained_and_escapes_names(tmp_path: Path) -> None:
    from src import figures

    run = make_run(tmp_path / "0", "seed=0", model="<b>net</b>")
    figures.save(figures.confusion_matrix([[1, 0], [0, 1]], ["a", "b"]), run / "figures/confusion_matrix.png")
    figures.save(figures.confusion_matrix([[1, 0], [0, 1]], ["a", "b"]), tmp_path / "figures/importance.png")
    report.report([tmp_path])
    page = (tmp_path / "report/report.html").read_text()
    assert "<b>net" not in page
    assert "&lt;b&gt;net" in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page
    alts = re.findall(r'alt="([^"]+)"', page)
    assert alts == [f"{tmp_path.name}: importance", "loss and accuracy", "confusion matrix"]


def test_markdown_has_the_table(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "seed=0")
    report.report([tmp_path / "0"])
    lines = (tmp_path / "0/report/report.md").read_text().splitlines()
    assert lines[0].startswith("| model | data | n | best epoch | val acc |")
    assert lines[2].startswith("| vgg11 | digits | 1 | 2 | 90.00% | 80.00% | 1,234,567 |")


def test_the_command_prints_the_table_without_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "seed=0")
    code = (
        "import sys; sys.argv = ['report', sys.argv[1]]; from src import report; report.main();"
        "print('torch' in sys.modules)"
    )
    done = run_command("-c", code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "90.00%" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"
    done = run_command("-m", "src.report", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no folder")


# The table of networks


def test_the_costs_of_a_small_network_are_those_worked_out_by_hand() -> None:
    with torch.device("meta"):
        body = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 1), nn.Flatten()]
        network = nn.Sequential(*body, nn.Linear(2 * 36, 5))
    costs = measure(network, 8)
    assert costs == {
        "parameters": (4 * 27 + 4) + (2 * 4 + 2) + (5 * 72 + 5),
        "connected": 5 * 72 + 5,
        "multiply_adds": 36 * 4 * 27 + 36 * 2 * 4 + 5 * 72,
        "activations": 4 * (3 * 64 + 4 * 36 + 2 * 36),  # the inputs of the three layers; ReLU keeps none of its own
        "depth": 3,
    }


def test_the_classic_networks_cost_what_their_papers_say() -> None:
    rows, failed = networks(["model=vgg16,googlenet,alexnet,resnet50,nin"])
    assert not failed
    found = {row["network"]: row for row in rows}
    depth = {name: row["depth"] for name, row in found.items()}
    assert depth == {"vgg16": 16, "googlenet": 22, "alexnet": 8, "resnet50": 50, "nin": 9}
    assert found["vgg16"]["parameters"] == 138_357_544  # 138 million: Simonyan and Zisserman, table 2
    assert found["alexnet"]["parameters"] == 61_100_840  # 60 million: Krizhevsky 2012
    assert found["resnet50"]["multiply_adds"] / 1e9 == pytest.approx(3.8, rel=0.1)  # He et al., table 1
    assert found["googlenet"]["multiply_adds"] / 1e9 == pytest.approx(1.5, rel=0.05)  # Szegedy et al., section 1
    assert found["googlenet"]["parameters"] * 9 < found["alexnet"]["parameters"]  # "12 times fewer", in their own count
    assert found["nin"]["connected"] == 0


def test_a_network_that_cannot_be_built_is_left_out_with_the_reason() -> None:
    rows, failed = networks(["model=vgg16,tinyvgg", "data.image_size=17"])
    assert [row["network"] for row in rows] == ["tinyvgg"]
    assert "17" in failed["vgg16"]
