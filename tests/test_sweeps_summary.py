"""The summary of a sweep, against numbers worked out by hand and published tables."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from src.sweeps import summary
from src.sweeps.progress import MetricsFile, read_numbers, why


def runs(**values: list[float]) -> list[tuple[int, list[str], dict[str, float] | None]]:
    """One run for each value, seed by seed."""
    named = [(model, seed, value) for model, given in values.items() for seed, value in enumerate(given)]
    return [(i, [f"model={m}", f"seed={s}", "epochs=2"], {"test/acc": v}) for i, (m, s, v) in enumerate(named)]


def test_mean_deviation_and_interval_are_those_worked_out_by_hand() -> None:
    # 1, 2, 3, 4: mean 2.5, squared deviations 2.25 + .25 + .25 + 2.25 = 5, s = sqrt(5 / 3);
    # t(0.975, 3) = 3.182446 from the table, half = t * s / sqrt(4).
    found = summary.spread([1.0, 2.0, 3.0, 4.0])
    assert found["mean"] == 2.5
    assert found["std"] == pytest.approx(math.sqrt(5 / 3))
    assert found["half"] == pytest.approx(3.182446 * math.sqrt(5 / 3) / 2, rel=1e-6)


def test_one_run_has_a_mean_and_no_deviation() -> None:
    assert summary.spread([0.9]) == {"mean": 0.9, "std": None, "half": None, "values": [0.9]}


def test_welchs_t_test_gives_the_p_of_its_formula() -> None:
    # Means 3 and 6, variances 2.5 and 10, n = 5: t = -3 / sqrt(2.5), and by Welch and Satterthwaite
    # df = 2.5^2 / ((0.5^2 + 2^2) / 4) = 5.882. The integral of Student's density beyond t gives p.
    a, b = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0]
    t, df = 3 / math.sqrt(2.5), 2.5**2 / ((0.5**2 + 2**2) / 4)
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    step = t / 10_000
    inside = step * sum(scale * (1 + ((i + 0.5) * step) ** 2 / df) ** (-(df + 1) / 2) for i in range(10_000))
    assert summary.welch(a, b) == pytest.approx(1 - 2 * inside, abs=1e-6)


def test_runs_without_any_deviation_differ_or_not() -> None:
    assert summary.welch([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert summary.welch([1.0, 1.0], [2.0, 2.0]) == 0.0
    assert summary.welch([1.0], [2.0, 2.0]) is None


def test_holms_correction_is_the_one_of_its_paper() -> None:
    # Three tests: the least p times 3, the next times 2, the last as it is, never falling.
    assert summary.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert summary.holm([0.5, 0.9]) == [1.0, 1.0]


def test_seeds_of_one_configuration_make_one_row() -> None:
    rows = summary.group(runs(vgg=[0.90, 0.92], nin=[0.80, 0.82, 0.84]))
    assert [(row["config"], row["n"], row["jobs"]) for row in rows] == [
        ({"model": "vgg"}, 2, [0, 1]),
        ({"model": "nin"}, 3, [2, 3, 4]),
    ]
    assert rows[1]["metrics"]["test/acc"]["mean"] == pytest.approx(0.82)
    assert rows[0]["overrides"] == ["model=vgg", "epochs=2"]


def test_folds_are_repeats_as_seeds_are() -> None:
    folds = [(i, ["data=stl10", f"data.fold={i}"], {"test/acc": 0.5 + 0.01 * i}) for i in range(10)]
    (row,) = summary.group(folds)
    assert row["config"] == {}
    assert row["n"] == 10
    assert row["metrics"]["test/acc"]["mean"] == pytest.approx(0.545)
    assert row["metrics"]["test/acc"]["std"] == pytest.approx(0.01 * math.sqrt(55 / 6))  # of 0..9: n (n + 1) / 12


def test_a_difference_that_the_seeds_do_not_show_is_marked() -> None:
    rows = summary.group(runs(best=[0.90, 0.91, 0.92], near=[0.89, 0.92, 0.91], far=[0.70, 0.71, 0.69]))
    best, near, far = (row["against_best"]["test/acc"] for row in rows)
    assert best["best"]
    assert near["supported"] is False
    assert far["supported"] is True
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(summary.table(rows, "test/acc"))
    lines = console.export_text().splitlines()
    assert [any("~" in line for line in lines if name in line) for name in ("best │", "near", "far")] == [
        False,
        True,
        False,
    ]


def test_of_losses_the_least_is_the_best() -> None:
    rows = summary.group([(0, ["a=1"], {"val/loss": 0.5}), (1, ["a=2"], {"val/loss": 0.2})])
    assert [row["against_best"]["val/loss"]["best"] for row in rows] == [False, True]


def test_failed_runs_are_counted_and_unfinished_ones_left_out(tmp_path: Path) -> None:
    jobs = [
        {"number": n, "overrides": [f"lr={lr}", f"seed={n}"], "label": "", "status": status}
        for n, (lr, status) in enumerate([(1, "done"), (1, "failed"), (1, "running"), (2, "killed")])
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    (tmp_path / "0").mkdir()
    results = {"status": "done", "metrics": {"val/acc": 0.7}, "best": {"metric": "val/acc", "value": 0.8}}
    (tmp_path / "0" / "results.json").write_text(json.dumps(results))
    rows = summary.write(tmp_path)
    assert [(row["config"], row["n"], row["failed"]) for row in rows] == [({"lr": "1"}, 1, 1), ({"lr": "2"}, 0, 1)]
    assert rows[0]["metrics"]["val/acc"]["mean"] == 0.8, "that of the checkpoint which the run keeps"
    assert json.loads((tmp_path / "summary.json").read_text()) == rows
    with (tmp_path / "summary.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert lines[0] == {
        "lr": "1", "n": "1", "failed": "1", "val/acc mean": "0.8", "val/acc std": "", "val/acc half": "",
    }  # fmt: skip


def test_a_folder_without_a_sweep_has_no_rows(tmp_path: Path) -> None:
    assert summary.summarise(tmp_path) == []
    assert read_numbers(tmp_path) is None


def test_the_metrics_of_a_running_job_come_epoch_by_epoch_whole_lines_only(tmp_path: Path) -> None:
    file = tmp_path / "csv" / "metrics.csv"
    follow = MetricsFile(tmp_path, "val/acc")
    assert follow.new() == []
    file.parent.mkdir()
    file.write_text("epoch,step,val/acc\n0,9,0.5\n1,19,0.6")
    assert follow.new() == [(0, 0.5)]
    assert follow.new() == []
    # Lightning rewrites the file with a wider header when a metric comes up for the first time.
    file.write_text("epoch,lr,step,test/acc,val/acc\n0,,9,,0.5\n1,,19,,0.65\n1,0.1,19,,\n2,,29,,0.7\n2,,30,0.9,\n")
    assert follow.new() == [(1, 0.65), (2, 0.7)]


@pytest.mark.parametrize(
    ("code", "log", "expected"),
    [
        (1, "Traceback ...\nValueError: no\n\n", ("failed", "ValueError: no")),
        (1, "error: no\nSet the environment variable HYDRA_FULL_ERROR=1 for a trace.\n", ("failed", "error: no")),
        (1, "x.OutOfMemoryError: CUDA out of memory.\n", ("out of memory", "x.OutOfMemoryError: CUDA out of memory.")),
        (-15, "epoch 3\n", ("killed", "by SIGTERM")),
        (143, "epoch 3\n", ("killed", "by SIGTERM")),
        (2, "", ("failed", "exit code 2")),
    ],
)  # fmt: skip
def test_why_a_job_failed(tmp_path: Path, code: int, log: str, expected: tuple[str, str]) -> None:
    (tmp_path / "output.log").write_text(log)
    assert why(code, tmp_path / "output.log") == expected
