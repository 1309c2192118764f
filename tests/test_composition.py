"""What can be switched off, put together and kept apart by machine: each still ends in a run with results."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from src import cli
from src.report import report
from src.runs.build import compose
from src.runs.folder import RunError
from src.runs.record import read_results
from src.runs.run import open_run, resumed_config
from src.train import train
from tests.conftest import QUICK, SILENT, composed, run_well, train_here

Compose = Callable[..., DictConfig]


@pytest.mark.parametrize("group", ["logger", "callbacks", "scheduler"])
@pytest.mark.parametrize("off", ["none", "null", "[]"])
def test_a_group_is_switched_off_in_three_ways(group: str, off: str) -> None:
    cfg = composed(cli.switched_off(f"{group}={off}"))
    if (group, off) == ("scheduler", "none"):
        assert cfg.scheduler.factory.factor == 1, "a constant rate"
    else:
        assert not cfg[group]
        assert group != "scheduler" or cfg.model.scheduler is None


def test_null_stays_the_value_of_what_is_no_group() -> None:
    words = ["seed=null", "data.limit=null", "-m", "logger.csv=null", "experiment=null", "logger=none"]
    assert [cli.switched_off(word) for word in words] == [*words[:4], "experiment=[]", "logger=none"]
    for off in ("null", "[]"):  # a data set has a crop and a flip of its own
        assert cli.switched_off(f"data/augment={off}") == "data/augment=none"


def test_several_files_of_a_group_go_together() -> None:
    alone = {name: composed(f"callbacks={name}").callbacks for name in ("ema", "finetune", "default")}
    both = composed("callbacks=[ema,finetune]", "callbacks.ema.decay=0.9").callbacks
    assert set(both) == {*alone["ema"], *alone["finetune"]}
    assert both.ema.decay == 0.9
    assert both.finetune == alone["finetune"].finetune
    assert both.model_checkpoint == alone["default"].model_checkpoint
    assert set(composed("logger=[wandb,mlflow]").logger) == {"tensorboard", "csv", "wandb", "mlflow"}


@pytest.mark.parametrize(
    ("place", "key", "mode"),
    [("callbacks.model_checkpoint", "monitor", "mode"), ("callbacks.early_stopping", "monitor", "mode"),
     ("scheduler", "monitor", "factory.mode"), ("hydra.sweeper", "metric", "direction")],
)  # fmt: skip
def test_whatever_watches_a_metric_of_its_own_knows_its_better_values(place: str, key: str, mode: str) -> None:
    def found(*overrides: str) -> str:
        cfg = compose("train", ["scheduler=plateau", *overrides], return_hydra_config=True)
        saved: Any = OmegaConf.to_container(cfg.model, resolve=True)  # with a copy of the schedule
        assert saved["scheduler"]["factory"]["mode"] == cfg.scheduler.factory.mode
        return OmegaConf.select(cfg, f"{place}.{mode}")

    assert [found(), found("optimized_metric=val/loss")] == ["max", "min"]
    assert [found(f"{place}.{key}=val/loss"), found(f"{place}.{key}=train/score")] == ["min", "max"]
    told = ["optimized_metric=val/lack", "optimized_mode=min"]
    assert [found(*told), found(*told, f"{place}.{key}=val/acc")] == ["min", "max"]


def test_wandb_writes_beside_the_runs_and_under_an_id_of_each_run() -> None:
    first, second = (composed("logger=wandb", "paths.log_dir=/logs").logger.wandb for _ in range(2))
    assert first.save_dir == "/logs"  # a run folder with its links, which lead out, would not be opened
    assert (first.id != second.id, first.name) == (True, "seed0")


def test_without_a_logger_a_run_ends_and_what_lacks_its_curves_says_so(config: Compose, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        metrics, _, folder = train_here(config(*QUICK, *SILENT, "logger=[]", "scheduler=[]"))
    assert "there is no logger" in caplog.text
    results = read_results(folder)
    assert results["status"] == "done"
    assert results["metrics"] == pytest.approx(metrics)
    assert results["best"]["metric"] == "val/acc"
    assert {path.name for path in folder.iterdir()} == {".hydra", "checkpoints", "results.json"}
    with pytest.raises(RunError, match=r"no metrics in csv/: .* logger\.csv was off"):
        _ = open_run(folder).metrics
    rows, _, files = report([folder], folder / "report")
    assert rows[0].metrics["val/acc"]["mean"] == results["best"]["value"]
    assert "No curves: there is no epoch in csv/metrics.csv" in files[0].read_text()


def test_without_callbacks_the_last_epoch_is_tested_and_no_checkpoint_is_kept(config: Compose, caplog: Any) -> None:
    few = [*QUICK, *SILENT, "logger=none"]
    expected, _ = train(config(*few, "optimized_metric=null"))  # tests the checkpoint of its last epoch
    cfg = config(*few[: len(QUICK)], "callbacks=none", "logger=none")
    cfg.paths.output_dir += "_without"
    stale = Path(cfg.paths.output_dir, "checkpoints/last.ckpt")
    stale.parent.mkdir(parents=True)
    stale.write_text("of another run")
    with caplog.at_level(logging.WARNING):
        metrics, _, folder = train_here(cfg)
    assert "no checkpoint is kept" in caplog.text
    assert metrics["test/loss"] == expected["test/loss"]
    assert [path.name for path in stale.parent.iterdir()] == ["last.ckpt"]
    stale.unlink()
    results = read_results(folder)
    assert (results["status"], results["epochs"], results["best"], results["images_per_s"]) == ("done", 2, None, None)
    with pytest.raises(RunError, match=r"has no checkpoint: .* callbacks\.model_checkpoint was off"):
        _ = open_run(folder).model


def test_both_switched_off_on_the_command_line_end_in_a_table(tmp_path: Path) -> None:
    off = ["logger=none", "callbacks=null", "scheduler=none", "seed=null", f"paths.log_dir={tmp_path}"]
    output = run_well("-m", "src.train", *QUICK, *off)
    (folder,) = (tmp_path / "train/runs").glob("*_tinyvgg_digits")
    results = read_results(folder)
    assert f"seed={results['seed']} was drawn" in output
    assert "parameters, 2 epochs" in output
    assert "acc" in output.partition("parameters, 2 epochs")[2]
    assert "tensorboard" not in output


def test_a_drawn_seed_is_recorded_and_repeats_the_run(config: Compose) -> None:
    few = [*QUICK, *SILENT, "test=false", "trainer.max_epochs=1"]
    drawn, objects, folder = train_here(config(*few, "seed=null"))
    seed = read_results(folder)["seed"]
    saved = resumed_config(str(folder))
    assert seed == saved["seed"] == saved["data"]["seed"] == objects["datamodule"].seed
    assert yaml.safe_load((folder / ".hydra/config.yaml").read_text())["seed"] is None
    assert report([folder], folder / "report")[1][folder.name].settings["seed"] == str(seed)
    again, _ = train(config(*few, f"seed={seed}", "data.seed=null"))  # which is the run's, as by default
    another, _ = train(config(*few, "seed=null"))
    assert drawn["train/loss"] == again["train/loss"] != another["train/loss"]


def test_a_config_composed_with_hydras_own_part_trains_and_saves_without_it(tmp_path: Path) -> None:
    overrides = [*QUICK, *SILENT, f"paths.output_dir={tmp_path}", "trainer.max_epochs=1"]
    cfg = compose("train", overrides, return_hydra_config=True)
    train(cfg)
    assert "hydra" not in torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)["config"]
    assert "hydra" in cfg, "the caller's stays as it was"


def test_the_config_is_shown_when_it_is_asked_for(config: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    few = [*QUICK, *SILENT, "debug=fast_dev_run", "trainer.max_epochs=1"]
    train(config(*few))
    assert "optimized_metric" not in capsys.readouterr().out
    train(config(*few, "extras.print_config=true"))
    shown = capsys.readouterr().out
    assert "optimized_mode: max" in shown, "resolved"
    assert "hidden_units: 4" in shown


@pytest.mark.parametrize("name", ["train", "eval", "predict", "export", "sample"])
def test_a_machines_places_come_from_its_environment_its_file_and_the_command_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def places(*overrides: str) -> tuple[str, str]:
        paths = composed(*overrides, name=name).paths
        return paths.data_dir, paths.log_dir

    assert places("paths.root_dir=/here") == ("/here/data", "/here/logs")
    monkeypatch.setenv("CLASSICS_DATA_DIR", "/environment")
    assert places("paths.log_dir=/logs") == ("/environment", "/logs")
    monkeypatch.setenv("USER", "me")
    assert places("local=example") == ("/data", "/scratch/me/logs")
    assert places("local=example", "paths.data_dir=/given") == ("/given", "/scratch/me/logs")
    if name == "train":
        both = [composed("local=example", f"data={data}").data.root for data in ("cifar10", "digits")]
        assert both == ["/data", "/data"]


def test_the_latest_run_is_looked_for_where_this_machine_keeps_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.log_dir({"paths.root_dir": "a b"}) == "a b/logs"
    monkeypatch.setenv("CLASSICS_LOG_DIR", "/runs (of mine)")
    assert cli.log_dir({}) == "/runs (of mine)"
    assert cli.log_dir({"paths.log_dir": "/given='1'", "run": "latest"}) == "/given='1'"


def test_an_optimizer_of_timm_trains_and_reopens(config: Compose) -> None:
    pytest.importorskip("timm", reason="timm is an optional extra")
    lion = ["optimizer=adamw", "optimizer._target_=timm.optim.Lion", "~optimizer.fused", "optimizer.lr=1e-4"]
    _, objects, folder = train_here(config(*QUICK, *SILENT, *lion, "test=false"))
    assert type(objects["trainer"].optimizers[0]).__name__ == "Lion"
    assert open_run(folder).model.training is False
    resumed = config(*QUICK, *SILENT, *lion, "test=false", "trainer.max_epochs=3", f"resume={folder}")
    assert train(resumed)[1]["trainer"].current_epoch == 3


@pytest.mark.slow
def test_spawned_processes_give_the_results_that_launched_ones_give(tmp_path: Path) -> None:
    results, rows = {}, {}
    for strategy in ("ddp", "ddp_spawn"):
        folder = tmp_path / strategy
        more = [*QUICK[:3], "trainer=ddp_cpu", f"trainer.strategy={strategy}", "trainer.max_epochs=2"]
        run_well("-m", "src.train", *more, *SILENT, f"hydra.run.dir={folder}")
        results[strategy] = json.loads((folder / "results.json").read_text())
        rows[strategy] = open_run(folder).metrics
    launched, spawned = results.values()
    assert {key for key, value in spawned.items() if value is None} == set()
    assert launched.keys() == spawned.keys()
    assert spawned["status"] == "done"
    for key in ("best", "epochs", "parameters", "seed"):
        assert spawned[key] == launched[key], key
    same = [name for name in launched["metrics"] if name != "train/images_per_s"]
    assert [spawned["metrics"][name] for name in same] == pytest.approx([launched["metrics"][name] for name in same])
    assert rows["ddp_spawn"]["val/loss"].tolist() == pytest.approx(rows["ddp"]["val/loss"].tolist())
