"""The run folder: its name, its files written whole, its readers, and what its config may build."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch

from src.runs.build import compose, mode_of
from src.runs.evaluated import best_checkpoint, read_answers, read_evaluation
from src.runs.folder import (
    RunError,
    draw_seed,
    events_folder,
    find_run,
    new_run,
    read_yaml,
    removed_unless_started,
    starts_again,
    whole,
    write_csv,
    write_json,
    write_whole,
)
from src.runs.record import read_metrics, read_numbers, read_overrides, read_results, restore_csv
from src.runs.run import Run, load_checkpoint, open_run, resumed_config, saved_config
from src.runs.trust import check_config, trusted_packages


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new/file.txt"

    def write(second: str) -> None:
        with whole(path) as partial:
            partial.write_text("half")
            assert path.read_text() == "first"
            partial.write_text(second)

    write_whole(path, "first")
    with pytest.raises(UnicodeEncodeError):
        write("\ud800")
    assert (os.listdir(path.parent), path.read_text()) == (["file.txt"], "first")
    write("second")
    assert (os.listdir(path.parent), path.read_text()) == (["file.txt"], "second")


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2"}, "slurm_7.2_vgg11_digits"),
        ({}, "20*_vgg11_digits"),
        ({"SLURM_JOB_ID": "7"}, "20*"),  # a job script without srun: one process
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "interactive"}, "20*"),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"}, "20*"),
    ],
)
def test_processes_started_together_share_a_folder_where_the_config_has_runs(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], name: str
) -> None:
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    cfg = compose("train", ["task_name=mine", "model=vgg11", "paths.root_dir=/elsewhere"], return_hydra_config=True)
    folder = Path(cfg.hydra.run.dir)
    assert folder.match(name)
    assert folder.parent == Path("/elsewhere/logs/mine/runs")
    assert cfg.hydra.run.dir == str(folder), "the name stays what it was"


def test_a_run_without_a_config_of_its_model_has_the_rest_of_its_name() -> None:
    cfg = compose("train", ["~model", "+model._target_=mylab.Net"], return_hydra_config=True)
    assert Path(cfg.hydra.run.dir).match("20*[0-9]_digits")
    assert Path(new_run("runs", "mylab/net", None)).match("runs/20*_mylab-net")


def test_the_processes_of_a_run_draw_one_seed_and_each_run_another(monkeypatch: pytest.MonkeyPatch) -> None:
    assert draw_seed() != draw_seed()
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert draw_seed() != 7, "an earlier run's, in the same process"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert draw_seed() == 7, "the one that Lightning hands to the processes that it starts"
    monkeypatch.delenv("PL_GLOBAL_SEED")
    for key, value in {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2"}.items():
        monkeypatch.setenv(key, value)
    of_job_7 = draw_seed()
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert draw_seed() == of_job_7
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert draw_seed() != of_job_7


def test_processes_without_a_common_store_must_be_given_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RUN_ID": "x", "USE_AGENT_STORE": "False"}.items():
        monkeypatch.setenv(f"TORCHELASTIC_{key}", value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"hydra\.run\.dir="):
        new_run("logs")
    with pytest.raises(ValueError, match="seed="):
        draw_seed()


def test_a_job_that_was_requeued_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not starts_again()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not starts_again()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert starts_again()


def test_tensorboard_shows_a_run_by_its_model_data_and_seed(run: Path) -> None:
    assert events_folder(run) == run / "tensorboard/tinyvgg_digits_seed0"
    assert list(events_folder(run).glob("events.*"))


@pytest.mark.parametrize(
    ("files", "starts", "stays"),
    [
        ([".hydra/config.yaml", "train.log"], False, False),
        ([".hydra/config.yaml", "train.log"], True, True),
        ([".hydra/config.yaml", "train.log", "output.log"], False, True),  # of a sweep, whose table names output.log
        ([".hydra/config.yaml", "notes.txt"], False, True),
    ],
)
def test_a_new_run_folder_vanishes_if_the_training_does_not_start(
    tmp_path: Path, files: list[str], starts: bool, stays: bool
) -> None:
    folder = tmp_path / "run"
    for file in files:
        write_whole(folder / file, "")

    def run() -> None:
        with removed_unless_started(folder) as started:
            write_whole(folder / "tensorboard/events", "")
            if starts:
                started()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert folder.exists() == stays


def test_the_latest_run_is_looked_for_where_it_is_told(run: Path, tmp_path: Path) -> None:
    assert find_run("latest", tmp_path) == run
    with pytest.raises(RunError, match="no run with a checkpoint"):
        find_run("latest", tmp_path / "empty")
    assert open_run("latest", logs=tmp_path).folder == run


@pytest.mark.parametrize(
    ("metric", "mode"),
    [("val/loss", "min"), ("val/aux1_loss", "min"), ("test/ece", "min"), ("parameters", "min"), ("seconds", "min"),
     ("val/rmse", "min"), ("val/hamming_distance", "min"), ("val/loss_g", "min"), ("val/error_top5", "min"),
     ("test/frechet_distance_floor", "min"), ("test/kid", "min"),
     ("val/acc", "max"), ("train/score", "max"), ("train/images_per_s", "max"), ("val/acc_top5", "max")],
)  # fmt: skip
def test_the_direction_follows_from_the_metric(metric: str, mode: str) -> None:
    assert mode_of(metric) == mode


def test_metrics_have_a_row_an_epoch_whatever_the_lines_of_the_file(tmp_path: Path) -> None:
    assert read_metrics(tmp_path).empty
    path = tmp_path / "csv/metrics.csv"
    write_whole(path, "epoch,lr-SGD,step,train/score,val/loss,test/acc\n,0.1,9,,,\n0,,9,,2.5,\n0,,9,0.5,,\n1,,19,0.6,")
    expected = pd.DataFrame(
        {"lr-SGD": [0.1], "train/score": [0.5], "val/loss": [2.5]}, index=pd.Index([0], name="epoch")
    )
    pd.testing.assert_frame_equal(read_metrics(tmp_path), expected)
    write_whole(path, "step,lr-SGD\n9,0.1\n")
    assert read_metrics(tmp_path).empty
    write_whole(path, 'epoch,step\n0,"1\n2,3,4,5\n')
    with pytest.raises(RunError, match=r"metrics\.csv is no table of metrics"):
        read_metrics(tmp_path)


def test_numbers_are_those_of_a_run_that_ended_and_of_the_checkpoint_it_keeps(tmp_path: Path) -> None:
    assert read_numbers(tmp_path) is None
    record = {"status": "done", "metrics": {"val/acc": 0.7, "test/acc": 0.6}, "epochs": 3, "seconds": 1.5}
    record["best"] = {"metric": "val/acc", "value": 0.8}
    write_whole(tmp_path / "results.json", json.dumps(record))
    assert read_numbers(tmp_path) == {"val/acc": 0.8, "test/acc": 0.6, "epochs": 3, "seconds": 1.5}
    for text, complaint in (
        ("{", "is no JSON file"),
        ("[" * 100_000, "is no JSON file"),
        ("[1]", "is no record of a run"),
        ('{"a": 1}', "has no metrics"),
    ):
        write_whole(tmp_path / "results.json", text)
        with pytest.raises(RunError, match=complaint):
            read_results(tmp_path)


def test_predictions_name_the_classes_as_the_run_does(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": [0, 1], "label": ["NA", "01"], "prediction": ["NA", "1"], "confidence": [0.5, 0.75]})
    frame = frame.assign(brightness=0.25, p_NA=[0.5, 0.125], p_01=0.125, p_1=[0.375, 0.75])
    write_csv(tmp_path / "predictions.csv", frame)
    pd.testing.assert_frame_equal(Run(tmp_path).predictions, frame)


@pytest.mark.parametrize("best", [None, {"path": "checkpoints/epoch_002.ckpt", "epoch": 2}])
def test_predictions_from_before_a_run_went_on_are_refused(best: dict[str, Any] | None, tmp_path: Path) -> None:
    frame = pd.DataFrame({"label": ["a", "b"], "prediction": ["a", "a"], "confidence": 0.5, "brightness": 0.5})
    write_csv(tmp_path / "predictions.csv", frame)
    results = {"status": "done", "metrics": {}, "best": best, "epochs": 3}
    write_json(tmp_path / "results.json", results)
    origin = {"checkpoint": "last.ckpt" if best is None else "epoch_002.ckpt", "epoch": 2}
    write_json(tmp_path / "evaluation.json", {**origin, "step": 60, "metrics": {"test/acc": 0.5}})
    assert read_evaluation(tmp_path, origin) == {"test/acc": 0.5}
    assert len(read_answers(tmp_path)) == 2
    better = best and {"path": "checkpoints/epoch_004.ckpt", "epoch": 4}
    write_json(tmp_path / "results.json", {**results, "best": better, "epochs": 5})
    with pytest.raises(
        RunError, match=r"predictions\.csv is of another checkpoint than the run's best is now: python -m"
    ):
        read_answers(tmp_path)
    assert read_evaluation(tmp_path, best_checkpoint(tmp_path)) == {}


def test_a_resumed_runs_csv_keeps_the_rows_before_its_checkpoint(tmp_path: Path) -> None:
    from src.runs.curves import CSVLogger

    rows = ["epoch,step,train/acc,val/acc", "0,9,,0.5", "0,9,0.4,", "1,14,,0.6", "1,14,0.5,", "1,19,,0.7"]
    write_whole(tmp_path / "csv/metrics.csv", "\n".join([*rows, ""]))
    logger = CSVLogger(tmp_path, name=None, version="csv")
    progress = {"epoch_progress": {"current": {"completed": 1}}}  # the second ended, as far as max_steps went
    restore_csv([logger], tmp_path, {"global_step": 15, "loops": {"fit_loop": progress}})
    kept = pd.read_csv(tmp_path / "csv/metrics.csv").fillna("").astype(str)[["epoch", "step", "train/acc", "val/acc"]]
    assert kept.values.tolist() == [row.split(",") for row in rows[1:4]]


def test_a_new_column_in_the_curves_comes_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    from src.runs.curves import CSVLogger

    write_whole(tmp_path / "csv/metrics.csv", "step,of_an_earlier_training\n0,1\n")
    logger = CSVLogger(tmp_path, name=None, version="csv")
    for step in range(2):
        logger.log_metrics({"epoch": step, "val/acc": 0.5}, step)
    logger.save()
    before = (tmp_path / "csv/metrics.csv").read_text()
    logger.log_metrics({"epoch": 2, "test/acc": 0.4}, 2)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            logger.save()
    assert (tmp_path / "csv/metrics.csv").read_text() == before == "epoch,step,val/acc\n0,0,0.5\n1,1,0.5\n"
    logger.save()
    assert (tmp_path / "csv/metrics.csv").read_text() == "epoch,step,test/acc,val/acc\n0,0,,0.5\n1,1,,0.5\n2,2,0.4,\n"


def test_interpolations_in_a_run_folder_stay_text(tmp_path: Path) -> None:
    write_whole(tmp_path / ".hydra/overrides.yaml", "- a=${oc.env:HOME}\n- 'b=${data.num_classes}'\n")
    assert read_overrides(tmp_path) == ["a=${oc.env:HOME}", "b=${data.num_classes}"]
    write_whole(tmp_path / "broken.yaml", "a: [1\n")
    with pytest.raises(RunError, match=r"broken\.yaml is no YAML"):
        read_yaml(tmp_path / "broken.yaml")


REFUSED = {
    "'torch.nn.Linear' under 'optimizer'; that is refused, for it is no torch.optim.Optimizer": {
        "optimizer": {"_target_": "torch.nn.Linear"}
    },
    "'torch.nn.Linear' under 'anything'; that is refused, for nothing is built there": {
        "anything": [{"_target_": "torch.nn.Linear"}]
    },
    "'mylab.Net' under 'model.network'; that is refused, for mylab is not among": {
        "model": {"network": {"_target_": "mylab.Net"}}
    },
    "'src.networks.vgg.VGGG' under 'model.network'; that is refused, for there is no such class": {
        "model": {"network": {"_target_": "src.networks.vgg.VGGG"}}
    },
    "{'a': 1} under 'data'": {"data": {"_target_": {"a": 1}}},
    "an interpolation under 'tags'": {"tags": ["${oc.env:HOME}"]},
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_saved_config_builds_nothing_that_its_place_is_not_there_for(message: str) -> None:
    with pytest.raises(RunError) as error:
        check_config(REFUSED[message])
    assert message in str(error.value)


def test_a_package_of_ones_own_is_trusted_once_it_is_named_and_parts_of_src_are_always() -> None:
    network = {"model": {"network": {"_target_": "tests.test_finetune.Small"}}}
    with pytest.raises(RunError, match="tests is not among the packages trusted"):
        check_config(network)
    check_config(network, ["tests"])
    check_config({"model": {"_target_": "src.modules.googlenet.GoogLeNetClassifier"}})
    assert trusted_packages(["tests"]) - trusted_packages() == {"tests"}


def test_a_run_that_was_moved_leads_its_paths_to_where_it_is(run: Path) -> None:
    config = resumed_config(str(run))
    assert config["resume"] == config["paths"]["output_dir"] == str(run)
    assert config["callbacks"]["model_checkpoint"]["dirpath"] == f"{run}/checkpoints"
    checkpoint = load_checkpoint(run / "checkpoints/last.ckpt")
    beside = checkpoint["config"]["paths"]["output_dir"] + "2/images"
    checkpoint["config"] = {**checkpoint["config"], "data": {"root": beside}}
    assert saved_config(run, checkpoint)["data"]["root"] == beside


def test_what_holds_no_checkpoint_of_a_run_is_refused(run: Path, tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1)}, tmp_path / "other.ckpt")
    (tmp_path / "half.ckpt").write_bytes((run / "checkpoints/last.ckpt").read_bytes()[:1000])
    for name, complaint in (("other.ckpt", "is no checkpoint of a run"), ("half.ckpt", r"damaged.*other\.ckpt")):
        with pytest.raises(RunError, match=complaint):
            load_checkpoint(tmp_path / name)
    with pytest.raises(RunError, match="there is no checkpoint"):
        open_run(tmp_path / "nowhere.ckpt")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="has no checkpoint"):
        _ = open_run(run).checkpoint
    with pytest.raises(RunError, match="to resume from"):
        resumed_config(str(run))
