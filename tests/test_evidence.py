"""What the recipes reach stands in one file, where a command puts it; the README and the recipes say the same."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from src.report import Record, compare, read_runs
from src.runs.table import Row
from src.studies import evidence
from tests.test_report import make_run

COMMAND = "python -m src.train -m model=vgg11 experiment=cifar10_cpu data=cifar10 seed=0,1"


@pytest.fixture
def report(tmp_path: Path) -> tuple[list[Row], dict[str, Record]]:
    """Of two seeds of a recipe, evaluated over six views, and a run without one."""
    for seed, value in enumerate((0.90, 0.94)):
        run = make_run(tmp_path / str(seed), f"seed={seed}", "experiment=cifar10_cpu", "data=cifar10", test=value)
        results = json.loads((run / "results.json").read_text())
        results |= {"matmul_gflops": 199.0 + 2 * seed, "utilisation": 0.4 + 0.2 * seed, "git_commit": f"abc{seed}"}
        (run / "results.json").write_text(json.dumps(results))
        record = {"checkpoint": "epoch_002.ckpt", "epoch": 2, "metrics": {"test/acc_tta": value + 0.02}}
        (run / evidence.VIEWS).write_text(json.dumps(record))
        record["metrics"] = {"test/corruption_acc": value - 0.3, "test/ece": 0.05}
        (run / "evaluation.json").write_text(json.dumps(record))
    make_run(tmp_path / "2", "seed=0")
    runs = read_runs([tmp_path])[0]
    return compare(runs), runs


@pytest.fixture
def found(report: tuple[list[Row], dict[str, Record]]) -> pd.DataFrame:
    return evidence.rows_of(*report)


def test_the_readme_and_the_recipes_say_what_the_file_has() -> None:
    for path, text in evidence.rendered(evidence.add(pd.DataFrame())).items():
        assert path.read_text() == text, f"python -m src.report results writes {path.name}"


def test_runs_of_a_recipe_are_one_row_with_what_its_reader_needs(found: pd.DataFrame) -> None:
    (line,) = found.to_dict("records")
    assert (line["experiment"], line["model"], line["n"]) == ("cifar10_cpu", "vgg11", 2)
    assert (line["acc"], line["acc_views"]) == pytest.approx((0.92, 0.94))
    assert (line["corruption_acc"], line["ece"]) == pytest.approx((0.62, 0.05))
    assert line["std"] == line["std_views"] == pytest.approx(0.02 * 2**0.5)
    assert (line["minutes"], line["images_per_s"]) == (1.5, 1000)
    assert (line["matmul_gflops"], line["utilisation"]) == (200, 0.5)
    assert (line["torch"], line["commit"], line["command"]) == ("2.15", "abc0, abc1", COMMAND)


def test_the_first_run_of_a_recipe_is_drawn_over_its_minutes(
    report: tuple[list[Row], dict[str, Record]], found: pd.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"has no curves: logger.csv or callbacks.throughput was off"):
        evidence.curves_of(*report)
    for run in report[1].values():  # of the same images each epoch, in 14.4, 28.8 and 28.8 of 72 seconds
        run.history["train/images_per_s"] = [2000, 1000, 1000]
    curves = evidence.curves_of(*report)
    assert curves["experiment"].tolist() == ["cifar10_cpu"] * 3
    file = tmp_path / "curves.csv"
    evidence.add(curves.assign(model="nin"), file)
    evidence.add(curves.assign(acc=0.1), file)
    both = evidence.add(curves, file)
    assert len(both) == 6
    pd.testing.assert_frame_equal(evidence.add(evidence.curves_of([], {}), file), both.reset_index(drop=True))
    (line,) = evidence.drawn(both, found).axes[0].lines  # nobody measured nin
    assert line.get_label() == "cifar10_cpu, test 92.00 %"
    np.testing.assert_allclose(line.get_xdata(), [0.24, 0.72, 1.2])
    np.testing.assert_allclose(line.get_ydata(), 0.5)


def test_the_command_of_a_run_is_what_it_was_given_without_the_sweep(
    report: tuple[list[Row], dict[str, Record]],
) -> None:
    run = next(run for run in report[1].values() if run.differing.get("experiment"))
    run.results["overrides"] = ["hparams_search=cpu_hour", "experiment=a b", "~data.augment.flip", "seed=3"]
    assert evidence._command([run]) == "python -m src.train 'experiment=a b' '~data.augment.flip' seed=3"
    run.results["overrides"] = ["experiment=a"]  # of the default seed
    other = replace(run, settings={**run.settings, "seed": "7"})
    assert evidence._command([run, other]) == f"python -m src.train -m experiment=a seed={run.settings['seed']},7"


def test_a_row_takes_the_place_of_that_of_its_recipe_and_model(found: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "results.csv"
    evidence.add(found.assign(model=["b"]), file)
    evidence.add(found.assign(model=["a"], acc=[0.5]), file)
    every = evidence.add(found.assign(model=["a"], acc=[0.7]), file)
    assert list(every["model"]) == ["a", "b"]
    pd.testing.assert_frame_equal(evidence.add(pd.DataFrame(), file), every, check_dtype=False)
    assert every["acc"].tolist() == [0.7, pytest.approx(0.92)]


def test_a_run_alone_is_a_row_and_runs_without_a_recipe_are_refused(
    report: tuple[list[Row], dict[str, Record]], tmp_path: Path
) -> None:
    alone = read_runs([tmp_path / "1"])[0]
    (line,) = evidence.rows_of(compare(alone), alone).to_dict("records")
    assert (line["experiment"], line["acc"]) == ("cifar10_cpu", 0.94)
    without = read_runs([tmp_path / "2"])[0]
    with pytest.raises(ValueError, match="none of these runs had a recipe"):
        evidence.write(compare(without), without)


def test_a_recipe_s_head_has_one_model_or_each_by_its_name(found: pd.DataFrame) -> None:
    def head(frame: pd.DataFrame) -> str:
        text = evidence.rendered(frame)[evidence.FILE.with_name("cifar10_cpu.yaml")]
        assert max(map(len, text.splitlines())) <= 120
        return text.replace("\n#   ", " ").partition("# Measured: ")[2].partition("\n")[0]

    told = "92.00 ± 2.83 % test accuracy, 94.00 ± 2.83 % with six views (n = 2)"
    rest = "1.5 minutes on cpu, at 50 % of its 200 GFLOP/s, torch 2.15, commit abc0, abc1"
    assert head(found) == f"{told}, {rest}."
    both = pd.concat([found, found.assign(model="nin", acc_views=None)])
    assert head(both) == f"vgg11 {told}, {rest}; nin 92.00 ± 2.83 % test accuracy (n = 2), {rest}."


def test_a_recipe_that_nobody_measured_names_another_of_its_network_on_the_same_data(found: pd.DataFrame) -> None:
    texts = evidence.rendered(found.assign(experiment="cpu_hour", model="googlenet", data="imagenet"))
    names = ("imagenet_googlenet", "cifar10_googlenet_finetune")
    heads = {name: texts[evidence.FILE.with_name(f"{name}.yaml")] for name in names}
    assert "# Measured: not yet; the same network, experiment=cpu_hour 92.00 ± 2.83 %.\n" in heads["imagenet_googlenet"]
    assert "# Measured: not yet.\n" in heads["cifar10_googlenet_finetune"]
