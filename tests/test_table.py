"""The table over runs, against numbers worked out by hand and published tables."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from src.runs import table

Runs = list[tuple[int, dict[str, str], dict[str, float] | None]]


def runs(**values: list[float]) -> Runs:
    """One run for each value, seed by seed."""
    named = [(model, seed, value) for model, given in values.items() for seed, value in enumerate(given)]
    return [(i, {"model": m, "seed": str(s), "a.lr": "2"}, {"test/acc": v}) for i, (m, s, v) in enumerate(named)]


def test_mean_deviation_and_interval_are_those_worked_out_by_hand() -> None:
    # 1, 2, 3, 4: mean 2.5, squared deviations 2.25 + .25 + .25 + 2.25 = 5, s = sqrt(5 / 3);
    # t(0.975, 3) = 3.182446 from the table, half = t * s / sqrt(4).
    found = table.spread([1.0, 2.0, 3.0, 4.0])
    assert found["mean"] == 2.5
    assert found["std"] == pytest.approx(math.sqrt(5 / 3))
    assert found["half"] == pytest.approx(3.182446 * math.sqrt(5 / 3) / 2, rel=1e-6)
    assert table.spread([0.9]) == {"mean": 0.9, "std": None, "half": None, "values": [0.9]}


def test_welchs_t_test_gives_the_p_of_its_formula() -> None:
    # Means 3 and 6, variances 2.5 and 10, n = 5: t = -3 / sqrt(2.5), and by Welch and Satterthwaite
    # df = 2.5^2 / ((0.5^2 + 2^2) / 4) = 5.882. The integral of Student's density beyond t gives p.
    a, b = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0]
    t, df = 3 / math.sqrt(2.5), 2.5**2 / ((0.5**2 + 2**2) / 4)
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    step = t / 10_000
    inside = step * sum(scale * (1 + ((i + 0.5) * step) ** 2 / df) ** (-(df + 1) / 2) for i in range(10_000))
    assert table.welch(a, b) == pytest.approx(1 - 2 * inside, abs=1e-6)


@pytest.mark.filterwarnings("error")
def test_runs_without_any_deviation_differ_or_not() -> None:
    assert table.welch([1.0, 1.0], [1.0, 1.0]) == 1.0
    assert table.welch([1.0, 1.0], [2.0, 2.0]) == 0.0
    assert 0 < (table.welch([1.0, 1.0], [2.0, 2.1]) or 0) < 0.05
    assert table.welch([1.0], [2.0, 2.0]) is None
    assert table.welch([1.0, math.nan], [2.0, 2.0]) is None


def test_holms_correction_is_the_one_of_its_paper() -> None:
    # Three tests: the least p times 3, the next times 2, the last as it is, never falling.
    assert table.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert table.holm([0.5, 0.9]) == [1.0, 1.0]
    assert table.holm([None]) == [None]


def test_the_seeds_of_one_configuration_make_one_row() -> None:
    rows = table.group(runs(vgg=[0.90, 0.92], nin=[0.80, 0.82, 0.84]))
    assert [(row.differing, row.n, row.runs) for row in rows] == [
        ({"model": "vgg"}, 2, [0, 1]),
        ({"model": "nin"}, 3, [2, 3, 4]),
    ]
    assert rows[1].metrics["test/acc"]["mean"] == pytest.approx(0.82)
    assert rows[0].settings == {"model": "vgg", "a.lr": "2"}


def test_the_folds_of_a_data_set_make_one_row_and_runs_of_no_fold_are_another() -> None:
    # 0.5, 0.7, 0.6: mean 0.6, squared deviations .01 + .01, s = sqrt(.02 / 2) = 0.1; t(0.975, 2) = 4.302653.
    given: Runs = [
        (i, {"model": "vgg", "data.folds": "3", "data.fold": str(i)}, {"val/acc": value})
        for i, value in enumerate([0.5, 0.7, 0.6])
    ]
    (row,) = table.group(given)
    assert (row.n, row.differing, row.runs) == (3, {}, [0, 1, 2])
    found = row.metrics["val/acc"]
    assert [found[key] for key in ("mean", "std", "half")] == pytest.approx([0.6, 0.1, 4.302653 * 0.1 / 3**0.5])
    other: Runs = [(3, {**given[0][1], "data.folds": "5", "seed": "1"}, {"val/acc": 0.4})]
    assert [row.n for row in table.group(given + other)] == [3, 1], "folds of another number are others"
    official: Runs = [(i, {"data.fold": fold}, {"val/acc": 0.5}) for i, fold in enumerate(["0", "1", "null", "None"])]
    rows = table.group(official)
    assert [(row.n, row.differing) for row in rows] == [(2, {"data.fold": "any"}), (2, {"data.fold": ""})]


def test_a_difference_that_the_seeds_do_not_show_is_marked() -> None:
    rows = table.group(runs(best=[0.90, 0.91, 0.92], near=[0.89, 0.92, 0.91], far=[0.70, 0.71, 0.69]))
    best, near, far = (row.against_best["test/acc"] for row in rows)
    assert (best["best"], near["supported"], far["supported"]) == (True, False, True)
    frame = table.table(rows, ["test/acc"], interval=True)
    assert list(frame) == ["model", "n", "test/acc", "test/acc 95 %"]
    assert list(frame["test/acc"]) == ["91.00 ± 1.00 %", "90.67 ± 1.53 % ~", "70.00 ± 1.00 %"]
    assert frame["test/acc 95 %"][0] == "± 2.48 %"  # t(0.975, 2) = 4.3027, times .01 / sqrt(3)


def test_the_best_is_by_the_direction_of_the_metric_or_the_one_given() -> None:
    given: Runs = [(i, {"a": str(i)}, {"val/loss": v, "val/score": v}) for i, v in enumerate([0.5, 0.2, math.nan])]
    rows = table.group(given, {"val/score": "min"})
    assert [row.against_best["val/loss"]["best"] for row in rows] == [False, True, False]
    assert [row.against_best["val/score"]["best"] for row in rows] == [False, True, False]
    assert [row.runs for row in table.ranked(rows, "val/score")] == [[0], [1], [2]], "the most first, NaN last"
    assert [row.runs for row in table.ranked(rows, "val/score", {"val/score": "min"})] == [[1], [0], [2]]


def test_numbers_are_written_as_people_read_them() -> None:
    accuracies = [table.shown(name, 0.9) for name in ("test/corruption_acc", "test/acc_tta", "test/accuracy")]
    assert accuracies == ["90.00 %", "90.00 %", "0.9000"]
    given = {"val/acc_top5": 0.9, "val/loss": 1e-5, "parameters": 1234567.0, "train/images_per_s": 1000.4}
    assert [table.shown(*one) for one in given.items()] == ["90.00 %", "1e-05", "1,234,567", "1,000"]
    rows = table.group([(i, {"x.lr": "0.00123456789", "y.lr": str(i)}, {"val/loss": 0.5}) for i in range(2)])
    assert list(table.table(rows, ["val/loss"])) == ["lr", "n", "val/loss"]
    rows = table.group([(i, {"x.lr": f"0.00123456{i}", "y.lr": str(i)}, {"val/loss": 0.5}) for i in range(2)])
    assert table.table(rows, ["val/loss"]).values.tolist()[0] == ["0.0012346", "0", "1", "0.5000"]
    assert list(table.table(rows, ["val/loss"])) == ["x.lr", "y.lr", "n", "val/loss"], "no name for two"


def test_a_table_is_printed_and_written_as_markdown_whatever_its_cells_hold() -> None:
    frame = pd.DataFrame({"model": ["[red]a|b"], "val/acc": ["90.00 %"]})
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table.rich_table(frame, "title", "caption"))
    text = console.export_text()
    assert [word for word in ("[red]a|b", "90.00 %", "title", "caption") if word not in text] == []
    assert table.markdown(frame).splitlines()[2] == "| [red]a\\|b | 90.00 % |"


def test_numbers_stand_to_the_right_and_names_to_the_left() -> None:
    cells = {
        "acc": "91.20 ± 0.35 % ~",
        "half": "± 0.20 %",
        "lr": "1e-3",
        "n": "2 of 3",
        "interval": "92.97 % (92 to 93)",
    }
    cells |= {"run": "2026-11-30_06-51-26-529039_tinyvgg_cifar10", "model": "vgg11"}
    assert table.numeric(pd.DataFrame([cells])) == [True] * 5 + [False] * 2


@pytest.mark.parametrize("width", [50, 80])
def test_a_narrow_terminal_takes_more_lines_and_no_digit(width: int) -> None:
    line = ["0.001", "2", "43.75 ± 16.70 % ~", "± 150.00 %", "45.14 ± 13.16 % ~", "± 118.24 %"]
    frame = pd.DataFrame([line], columns=["lr", "n", "val/acc", "val/acc ± 95 %", "test/acc", "test/acc ± 95 %"])
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table.rich_table(frame))
    shown = console.export_text()
    assert sorted(shown.partition("┡")[2].translate(dict.fromkeys(map(ord, "━╇┩│└─┴┘"))).split()) == sorted(
        " ".join(line).split()
    )


def test_words_give_way_to_numbers_while_there_is_room_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame([["googlenet", "model.aux_weight=0.3", "24.92 ± 1.65 %"]], columns=["model", "given", "acc"])
    for width, whole in ((41, True), (39, False)):
        console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
        monkeypatch.setattr("rich.get_console", lambda console=console: console)
        console.print(table.rich_table(frame))
        assert (" 24.92 ± 1.65 % " in console.export_text()) == whole


def test_a_summary_counts_failed_runs_and_holds_plain_numbers(tmp_path: Path) -> None:
    given: Runs = [(0, {"lr": "1"}, {"val/acc": 0.8}), (1, {"lr": "1", "seed": "1"}, None), (3, {"lr": "2"}, None)]
    rows = table.group(given)
    assert [(row.n, row.failed) for row in rows] == [(1, 1), (0, 1)]
    assert table.table(rows, ["val/acc"]).values.tolist() == [["1", "1 of 2", "80.00 %"], ["2", "0 of 1", ""]]
    table.write_summary(tmp_path, rows)
    assert [row["runs"] for row in json.loads((tmp_path / "summary.json").read_text())] == [[0, 1], [3]]
    lines = (tmp_path / "summary.csv").read_text().splitlines()
    assert lines == ["lr,n,failed,val/acc mean,val/acc std,val/acc half", "1,1,1,0.8,,", "2,0,1,,,"]
    table.write_summary(tmp_path, [])
    assert json.loads((tmp_path / "summary.json").read_text()) == []
