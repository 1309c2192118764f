"""The report reads what runs leave behind: its numbers, its grouping, and a page that needs no network."""

import csv
import json
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

from src import figures
from src.report import _histories, compare, main, read_run, read_runs, report
from src.runs.table import Row, brief, overview
from src.studies.networks import networks
from tests.conftest import run_command, run_well


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
    choices = {"hydra": {"runtime": {"choices": {"model": model, "data": data}}}}
    lines = ["epoch,step,lr-SGD,train/loss,train/acc,val/loss,val/acc,test/acc", ",0,0.1,,,,,"]
    for epoch in range(3):
        lines += [f"{epoch},{epoch},,,,{1 - epoch / 10},{val - 0.02 + epoch / 100},", f"{epoch},{epoch},,2,0.5,,,"]
    results = {
        "status": "done", "metrics": {"val/loss": 0.8, "val/acc": val, "test/acc": test}, "epochs": 3, "seconds": 90.0,
        "train_seconds": 72.0,
        "best": {"metric": "val/acc", "mode": "max", "value": val, "epoch": 2, "path": "checkpoints/epoch_002.ckpt"},
        "images_per_s": 1000.0, "parameters": 1234567, "device": "cpu", "versions": {"torch": "2.15"},
        "overrides": [f"model={model}", *overrides], "command": "python -m src.train", "git_commit": "abc",
        "seed": config["seed"], "data": {"test": "fedcba9876543210"},
    }  # fmt: skip
    files = {
        ".hydra/config.yaml": yaml.safe_dump(config), ".hydra/hydra.yaml": yaml.safe_dump(choices),
        "csv/metrics.csv": "\n".join([*lines, f"3,3,,,,,,{test}\n"]), "results.json": json.dumps(results),
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def rows_of(folder: Path) -> list[Row]:
    return compare(read_runs([folder])[0])


def test_runs_that_differ_by_seed_alone_are_one_row(tmp_path: Path) -> None:
    for seed, value in enumerate([0.90, 0.93, 0.96]):
        make_run(tmp_path / str(seed), f"seed={seed}", "optimizer.lr=0.1", val=value, test=value - 0.1)
    make_run(tmp_path / "3", "seed=0", "optimizer.lr=0.5", val=0.5, test=0.4)
    rows = rows_of(tmp_path)
    assert [row.runs for row in rows] == [["0", "1", "2"], ["3"]]
    frame = overview(rows)
    assert list(frame.columns[:7]) == ["model", "data", "lr", "n", "val/loss", "val/acc", "test/acc"]
    assert list(frame.columns[7:]) == ["best epoch", "parameters", "images_per_s", "seconds", "run"]
    numbers = ["0.8000 ± 0.0000", "93.00 ± 3.00 %", "83.00 ± 3.00 %", "2", "1,234,567", "1,000", "90.0", ""]
    assert list(frame.values[0])[4:] == numbers
    assert list(frame.values[1])[2:7] == ["0.5", "1", "0.8000", "50.00 %", "40.00 %"]
    assert frame["run"][1] == "3"
    frame = brief(rows, ["val/acc"])
    assert list(frame.columns) == ["model", "data", "given", "n", "val/acc", "test/acc", "seconds", "run"]
    assert list(frame.values[0]) == ["vgg11", "digits", "optimizer.lr=0.1", "3", *numbers[1:3], "90.0", ""]
    assert "val/loss" in brief(rows, ["val/f1"]), "all, where the one asked for was not measured"


def test_a_curves_legend_says_what_differs_on_its_data_set(tmp_path: Path) -> None:
    for i, given in enumerate([["seed=0"], ["seed=1"], ["optimizer.lr=0.5"], ["data=stl10", "optimizer.lr=0.3"]]):
        make_run(tmp_path / str(i), *given)
    found = read_runs([tmp_path])[0]
    lengths = {data: {k: len(v) for k, v in of.items()} for data, of in _histories(compare(found), found).items()}
    assert lengths == {"digits": {"model=vgg11": 2, "optimizer.lr=0.5": 1}, "stl10": {"model=vgg11": 1}}


def test_the_folds_of_a_sweep_are_one_row_beside_a_run_on_all_images(tmp_path: Path) -> None:
    for fold, value in enumerate([0.5, 0.7, 0.6]):
        digits: dict[str, Any] = {"_target_": "digits", "folds": 3, "fold": fold}
        make_run(tmp_path / str(fold), "data.folds=3", f"data.fold={fold}", val=value, data=digits)
    make_run(tmp_path / "all", val=0.55, data={"_target_": "digits", "folds": None, "fold": None})
    rows = rows_of(tmp_path)
    assert [(row.n, row.differing.get("data.folds", "")) for row in rows] == [(3, "3"), (1, "")]
    frame = overview(rows)
    assert frame["val/acc"].tolist() == ["60.00 ± 10.00 %", "55.00 %"]
    assert [*frame.columns[:4]] == ["model", "data", "folds", "fold"]


def test_runs_on_other_images_are_no_repeats_wherever_the_images_lie(tmp_path: Path) -> None:
    for i, (root, images) in enumerate([("/birds", "ab"), ("/flowers", "cd"), ("/moved/birds", "ab")]):
        folder = make_run(tmp_path / str(i), f"seed={i}", "data=folder", f"data.root={root}")
        results = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps({**results, "data": {"test": images}}))
    rows = rows_of(tmp_path)
    assert [row.runs for row in rows] == [["0", "2"], ["1"]]
    assert [row.differing["data.root"] for row in rows] == ["/birds", "/flowers"]


def test_runs_on_two_sets_of_torchvision_are_not_ranked_against_each_other(tmp_path: Path) -> None:
    for i, (name, value) in enumerate([("MNIST", 0.99), ("SVHN", 0.9), ("SVHN", 0.8)]):
        more: dict[str, Any] = {"optimizer": {"lr": i}, "data": {"_target_": "torchvision", "name": name}}
        make_run(tmp_path / str(i), "data=torchvision", f"data.name={name}", f"optimizer.lr={i}", val=value, **more)
    found = read_runs([tmp_path])[0]
    histories = _histories(compare(found), found)
    assert {data: list(of) for data, of in histories.items()} == {
        "torchvision MNIST": ["model=vgg11"],
        "torchvision SVHN": ["optimizer.lr=1", "optimizer.lr=2"],
    }


@pytest.mark.parametrize("words", [["networks", "--paper"], ["results", "--out=x"], ["compare", "a", "b", "--paper"]])
def test_an_option_that_a_report_of_another_kind_takes_is_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", *words])
    with pytest.raises(SystemExit):
        main()
    assert f"src.report {words[0]} takes no --{'out' if words[0] == 'results' else 'paper'}" in capsys.readouterr().err


def test_what_is_no_difference_between_configurations(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "seed=0", "paths.log_dir=x", task_name="one", logger={"wandb": {}})
    make_run(tmp_path / "b", "seed=1", "optimizer.lr=0.1", task_name="two")
    (row,) = rows_of(tmp_path)
    assert row.differing == {"model": "vgg11", "data": "digits"}, "a place, a watcher, a default written out"


def test_the_best_row_of_a_data_set_is_the_one_by_the_metric_of_its_own_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "data=cifar10")
    for name, loss, acc in (("a", 0.9, 0.95), ("b", 0.1, 0.5)):
        folder = make_run(tmp_path / name, f"optimizer.lr={loss}", "data=stl10")
        results = json.loads((folder / "results.json").read_text())
        results["best"] |= {"metric": "val/loss", "mode": "min", "value": loss}
        results["metrics"] |= {"val/loss": loss, "val/acc": acc}
        (folder / "results.json").write_text(json.dumps(results))
    assert [row.runs for row in rows_of(tmp_path)] == [["0"], ["b"], ["a"]]


def test_differences_the_seeds_do_not_support_are_marked_within_a_data_set(tmp_path: Path) -> None:
    for i, (lr, data, values) in enumerate([
        ("0.1", "digits", (0.90, 0.92, 0.91)), ("0.2", "digits", (0.89, 0.92, 0.90)),
        ("0.3", "digits", (0.50, 0.52, 0.51)), ("0.1", "stl10", (0.60, 0.80, 0.70)),
    ]):  # fmt: skip
        for seed, value in enumerate(values):
            overrides = (f"seed={seed}", f"optimizer.lr={lr}", f"data={data}")
            make_run(tmp_path / f"{i}{seed}", *overrides, val=value, test=value)
    frame = overview(rows_of(tmp_path))
    marked = [(data, lr, "~" in cell) for data, lr, cell in frame[["data", "lr", "val/acc"]].values]
    assert marked == [
        ("digits", "0.1", False),
        ("digits", "0.2", True),
        ("digits", "0.3", False),
        ("stl10", "0.1", False),
    ]


def test_runs_that_trained_on_all_images_are_ranked_by_the_test_of_what_they_optimise(tmp_path: Path) -> None:
    for lr, accuracy in (("0.1", 0.8), ("0.2", 0.9)):
        folder = make_run(tmp_path / lr, f"optimizer.lr={lr}", optimized_metric="val/acc")
        record = json.loads((folder / "results.json").read_text())
        record |= {"best": None, "metrics": {"test/loss": accuracy, "test/acc": accuracy}}
        (folder / "results.json").write_text(json.dumps(record))
    assert [row.differing["optimizer.lr"] for row in rows_of(tmp_path)] == ["0.2", "0.1"], "not the lower loss"


def test_a_run_that_logs_only_a_training_score_is_reported_like_any_other(tmp_path: Path) -> None:
    for seed, score in enumerate((3.0, 4.0, 1.0)):
        folder = make_run(tmp_path / str(seed), f"seed={seed}", f"optimizer.lr={seed}")
        (folder / "csv/metrics.csv").write_text(f"epoch,step,train/score\n0,1,0.5\n1,2,{score}\n")
        best = {"metric": "train/score", "mode": "min", "value": score, "epoch": 1}
        results = {"status": "done", "metrics": {"train/score": score}, "best": best}
        (folder / "results.json").write_text(json.dumps(results))
    rows, runs, _ = report([tmp_path])
    assert list(overview(rows)["train/score"]) == ["1.0000", "3.0000", "4.0000"], "the run's own mode"
    assert [row.against_best["train/score"]["best"] for row in rows] == [True, False, False]
    assert list(runs["0"].history) == ["epoch", "train/score"]
    page = (tmp_path / "report/report.html").read_text()
    assert page.count('alt="metrics over epochs"') == 3


def test_history_has_one_value_an_epoch_and_no_test_row(tmp_path: Path) -> None:
    history = read_run(make_run(tmp_path / "run", val=0.5), tmp_path).history
    assert set(history) == {"epoch", "lr-SGD", "train/loss", "train/acc", "val/loss", "val/acc"}
    assert list(history["epoch"]) == [0, 1, 2]
    assert list(history["val/loss"]) == [1.0, 0.9, 0.8]


MALFORMED: dict[str, tuple[list[str], list[str]]] = {  # what can be done without, and what cannot
    "results.json": (
        [],
        ["", "{", '{"status": "done", "metrics": ', "[1]", '{"metrics": 3}']
        + [f'{{"status": "done", "metrics": {{}}, "best": {best}}}' for best in ("5", '{"epoch": "x"}')],
    ),
    ".hydra/config.yaml": ([], ["", "[1", "- 1", "\x00"]),
    ".hydra/hydra.yaml": (["[]"], ["- 1", "hydra: 3", "{"]),
    "csv/metrics.csv": (
        ["step,val/loss\n1,nan\n", "epoch,step,val/loss\n0,1,word\n", "epoch\n\x00\n", "a,b\n1,2,3,4\n"],
        ["epoch,step,val/loss\nzero,1,0.5\n", "epoch,step,val/acc\nx,y,z\n"],
    ),
}


@pytest.mark.tried("files")
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_record_is_named_or_done_without_and_the_others_are_reported(tmp_path: Path, name: str) -> None:
    make_run(tmp_path / "good")
    readable, unreadable = MALFORMED[name]
    for number, text in enumerate([*readable, *unreadable]):
        (make_run(tmp_path / str(number), f"optimizer.lr={number + 1}") / name).write_text(text)
    rows, runs, files = report([tmp_path])
    reported = {"good", *map(str, range(len(readable)))}
    assert {run for row in rows for run in row.runs} == reported
    for run in set(runs) - reported:
        assert runs[run].status.startswith("unreadable: ")
    assert len(runs) == 1 + len(readable) + len(unreadable)
    assert all(path.is_file() for path in files)
    assert (tmp_path / "report/report.html").read_text().count("<dd>unreadable: ") == len(unreadable)


def test_interpolations_in_a_run_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "not for reports")
    make_run(tmp_path / "0", "seed=0", extra="${oc.env:SECRET}", wrong="${no.such}")
    _, runs, _ = report([tmp_path])
    assert runs["0"].settings["extra"] == "${oc.env:SECRET}"
    assert "not for reports" not in (tmp_path / "report/report.html").read_text()


def test_an_unfinished_run_is_named_and_stays_out_of_the_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.sweeps import Job

    for number in range(3):
        make_run(tmp_path / str(number), f"seed={number}")
    (tmp_path / "1/results.json").unlink()
    (tmp_path / "2/results.json").write_text(json.dumps({"status": "trained", "metrics": {}}))
    jobs = [Job(0, status="done"), Job(1, status="failed", reason="no memory")]
    monkeypatch.setattr("src.sweeps.read_jobs", lambda folder: jobs if folder == tmp_path else [])
    rows, runs, _ = report([tmp_path])
    assert [row.n for row in rows] == [1]
    assert [run.status for run in runs.values()] == ["done", "failed: no memory", "unfinished"]


def test_the_files_have_plain_numbers_for_every_run_and_row(tmp_path: Path) -> None:
    for seed in (10, 9):
        make_run(tmp_path / str(seed), f"seed={seed}", val=0.5 + seed / 100)
    _, _, files = report([tmp_path], tmp_path / "out")
    assert {path.name for path in files} == {"summary.csv", "summary.json", "runs.csv", "report.md", "report.html"}
    with (tmp_path / "out/runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["seed"], float(row["val/acc"])) for row in rows] == [("9", "9", 0.59), ("10", "10", 0.6)]
    assert (rows[0]["device"], rows[0]["parameters"], rows[0]["model"]) == ("cpu", "1234567", "vgg11")
    with (tmp_path / "out/summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["val/acc mean"]) == pytest.approx(0.595)
    assert float(row["val/acc std"]) == pytest.approx(statistics.stdev([0.59, 0.6]))
    lines = (tmp_path / "out/report.md").read_text().splitlines()
    assert lines[0].startswith("| model | data | n | val/loss | val/acc |")
    assert lines[2].startswith("| vgg11 | digits | 2 | 0.8000 ± 0.0000 | 59.50 ± 0.71 % |")


def test_the_page_is_self_contained_and_escapes_names(tmp_path: Path) -> None:
    for seed in range(2):
        run = make_run(tmp_path / str(seed), f"seed={seed}", model="<b>net</b>")
    for name in ("confusion_matrix", "confusion_matrix_multicrop", "per_class_flip"):
        figures.save(figures.confusion_matrix("ab", "ab", ["a", "b"]), run / f"figures/{name}.png")
    figures.save(figures.confusion_matrix("ab", "ab", ["a", "b"]), tmp_path / "figures/importance.png")
    report([tmp_path])
    page = (tmp_path / "report/report.html").read_text()
    assert "<b>net" not in page
    assert "&lt;b&gt;net" in page
    assert "&amp;lt;" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "http" not in page
    alts = re.findall(r'alt="([^"]+)"', page)
    epochs = "metrics over epochs"
    pictures = [epochs, epochs, "confusion matrix", "per class flip"]
    assert alts == ["runs on digits", f"{tmp_path.name}: importance", *pictures]
    assert page.count("python -m src.eval run=") == 1, "for the run without figures"


def test_the_page_of_many_runs_has_the_figures_of_one_a_row(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "seed=0")
    for seed in range(1, 25):
        shutil.copytree(tmp_path / "0", tmp_path / str(seed))
    report([tmp_path])
    page = (tmp_path / "report/report.html").read_text()
    assert page.count('alt="metrics over epochs"') == 1
    assert "1 of 25 runs" in page


def test_for_a_paper_figures_have_no_titles_and_the_facts_are_those_of_the_runs(tmp_path: Path) -> None:
    for seed, value in enumerate([0.90, 0.94]):
        make_run(tmp_path / f"a_{seed}", f"seed={seed}", "optimizer.lr=0.1", val=value, test=value - 0.1)
    make_run(tmp_path / "b&c", "seed=0", "optimizer.lr=0.5")
    make_run(tmp_path / "killed", "seed=3").joinpath("results.json").unlink()
    answers = "label,prediction,confidence,brightness,p_10,p_2\n10,10,0.9,0.5,0.9,0.1\n2,10,0.6,0.5,0.6,0.4\n"
    (tmp_path / "a_0/predictions.csv").write_text(answers)
    paper = tmp_path / "report/paper"
    files = report([tmp_path], paper=True)[2]
    curves = ["compare_digits", "curves_a_0", "curves_a_1", "curves_b&c", "curves_killed"]
    drawn = [*curves, "confusion_a_0", "reliability_a_0"]
    texts = {"table.tex", "table.md", "reproducibility.md"}
    assert {path.name for path in paper.iterdir()} == texts | {f"{n}.{e}" for n in drawn for e in ("png", "pdf", "svg")}
    assert set(paper.iterdir()) <= set(files)
    assert (paper / "compare_digits.pdf").read_bytes()[:5] == b"%PDF-"
    words = [(paper / f"{name}.svg").read_text() for name in curves]
    assert all("epoch</text>" in text and "lowest validation loss" not in text for text in words)
    table, sheet = (paper / "table.tex").read_text(), (paper / "reproducibility.md").read_text()
    assert r"82.00 $\pm$ 2.83 \%" in table
    assert r"\toprule" in table
    for fact in (
        *("Finished runs: 3, which took 0.08 hours in all, the longest 0.03.", "Without an end: 1 more"),
        *(
            "| 92.00 ± 2.83 % | ± 25.41 % |",
            "| max val/acc | 1,234,567 | 3 | 0.025 | 0, 1 |",
            "| cpu | None | 3 | 0.08 |",
        ),
        *("| digits | fedcba987654 |", "- `optimizer.lr`: 0.1, 0.5", "- torch: 2.15", "- commit: abc"),
    ):
        assert fact in sheet, fact


def test_jobs_of_one_number_in_two_sweeps_each_have_their_figures_for_a_paper(tmp_path: Path) -> None:
    for sweep, lr in (("a", 0.1), ("b", 0.5)):
        make_run(tmp_path / sweep / "0", f"optimizer.lr={lr}")
    files = {path.name for path in report([tmp_path], paper=True)[2]}
    assert {"curves_a_0.pdf", "curves_b_0.pdf"} <= files


def test_the_command_prints_the_table_without_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "0", "seed=0")
    code = (
        "import sys; sys.argv = ['report', sys.argv[1]]; from src import report; report.main();"
        "print('torch' in sys.modules)"
    )
    output = run_well("-c", code, str(tmp_path))
    assert "90.00 %" in output
    assert output.splitlines()[-1] == "False"
    done = run_command("-m", "src.report", str(tmp_path / "nowhere"))
    assert (done.returncode, done.stderr.startswith("error: there is no folder")) == (1, True)


def test_the_networks_are_measured_as_their_configs_build_them() -> None:
    costs, failed = networks(["model=vgg16,tinyvgg,googlenet"])
    assert (list(costs.index), failed) == (["vgg16", "tinyvgg", "googlenet"], {})
    assert costs.parameters["vgg16"] == 138_357_544  # 138 million: Simonyan and Zisserman, table 2
    costs, failed = networks(["model=vgg16,tinyvgg", "data.image_size=17", "data.num_classes=10"])
    assert list(costs.index) == ["tinyvgg"]
    assert "17" in failed["vgg16"]
