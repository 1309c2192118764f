"""A run that was stopped goes on as if it had not been: same weights, same metrics, to the last bit."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from src import cli
from src.runs.build import compose
from src.runs.folder import RunError
from tests.conftest import QUICK, SILENT, assert_equal_runs, run_command, run_well, train_here
from tests.warm import Command

# Dropout, augmentation and momentum: all that draws numbers or keeps state. VGG's two hidden layers drop out.
NETWORK = ["model=vgg11", "model.network.stages=[8,M,8,M]", "model.network.hidden=[32]"]
DATA = ["data.limit=1000", "data.batch_size=8"]  # 112 steps an epoch, some tenths of a second
ARGUMENTS = [
    *NETWORK,
    *DATA,
    *SILENT,
    "data/augment=trivial",
    "trainer=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=5",
    "optimizer=sgd",
    "optimizer.lr=0.01",
]


def train(folder: Path, *arguments: str) -> None:
    run_well("-m", "src.train", *ARGUMENTS, f"hydra.run.dir={folder}", *arguments)


def start(*arguments: str) -> Command:
    return Command("-m", "src.train", *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def stop_after_epoch(folder: Path, epoch: int, signum: int, delay: float = 0.0) -> str:
    """Starts a run, sends the signal `delay` seconds after the epoch's line, and returns what it printed."""
    return signal_after_epoch(start(*ARGUMENTS, f"hydra.run.dir={folder}"), epoch, signum, delay)


def signal_after_epoch(process: Command, epoch: int, signum: int, delay: float) -> str:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(f"epoch {epoch:3d} "):
            time.sleep(delay)
            process.send_signal(signum)
    process.wait()
    return "".join(lines)


def assert_images_counted(folder: Path, expected: Path) -> None:
    """All images that a run was trained with count, but for those of the part of an epoch that was cut off."""
    told = [json.loads((run / "results.json").read_text()) for run in (folder, expected)]
    images, whole = (each["images_per_s"] * each["train_seconds"] for each in told)
    assert images > 0.75 * whole


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    train(folder)
    return folder


def test_a_killed_run_moved_elsewhere_resumes_to_the_same_bits(uninterrupted: Path, tmp_path: Path) -> None:
    stop_after_epoch(tmp_path / "first", 2, signal.SIGKILL)
    shutil.move(tmp_path / "first", tmp_path / "moved")
    shadow = tmp_path / "moved/.hydra/hydra/job_logging/run.yaml"  # named as the project's own file of this group
    shadow.parent.mkdir(parents=True)
    shadow.write_text(f"version: 1\nformatters: {{x: {{(): os.mkdir, path: {tmp_path}/hacked}}}}\n")
    run_well("-m", "src.train", f"resume={tmp_path}/moved")
    assert_equal_runs(tmp_path / "moved", uninterrupted)
    told = [json.loads((run / "results.json").read_text()) for run in (tmp_path / "moved", uninterrupted)]
    assert told[0]["command"] == told[1]["command"], "what trains it from its start"
    assert told[0]["command"].startswith("python -m src.train ")
    assert told[0]["seconds"] > told[0]["train_seconds"]
    assert_images_counted(tmp_path / "moved", uninterrupted)
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "hacked").exists()


def test_a_run_killed_between_its_training_and_its_test_only_tests(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    done = run_command("-m", "src.train", f"resume={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "epoch   " not in done.stdout
    assert "no step was left to train" in done.stdout + done.stderr
    assert_equal_runs(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize("signum", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stopped_run_saves_in_the_middle_of_an_epoch_and_goes_on_there(
    uninterrupted: Path, tmp_path: Path, signum: int
) -> None:
    folder = tmp_path / "run"
    stop_after_epoch(folder, 1, signum, delay=0.1)
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert 2 * 112 < saved["global_step"] < 5 * 112
    assert saved["global_step"] % 112 != 0
    assert not (folder / "results.json").exists()
    run_well("-m", "src.train", f"resume={folder}")
    assert_equal_runs(folder, uninterrupted)
    assert_images_counted(folder, uninterrupted)


@pytest.mark.slow
def test_a_slurm_job_at_its_time_limit_is_requeued_and_goes_on_in_its_folder(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    for name, value in {"JOB_ID": "77", "STEP_ID": "0", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_LOCALID", "0")
    monkeypatch.setenv("SLURM_NODEID", "0")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    command = [*ARGUMENTS, f"paths.log_dir={tmp_path}/logs"]
    folder = tmp_path / "logs/train/runs/slurm_77.0_vgg11_digits"
    process = start(*command)
    signal_after_epoch(process, 1, signal.SIGUSR1, delay=0.1)
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    assert not (folder / "results.json").exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run_well("-m", "src.train", *command)
    assert [path.name for path in (tmp_path / "logs/train/runs").iterdir()] == [folder.name]
    assert_equal_runs(folder, uninterrupted)


@pytest.mark.slow
def test_overrides_apply_on_top_of_the_saved_config_once_it_has_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(folder, "trainer.max_epochs=1", "test=false")
    for override, complaint in {
        "optimizer=adam": "would change a whole section",
        "model.network.hiden=[8]": "did you mean model.network.hidden",
        "model.network.hidden=[8]": "size mismatch",
    }.items():
        done = run_command("-m", "src.train", f"resume={folder}", override)
        assert done.returncode == 1
        assert complaint in done.stderr
        assert "hidden:\n    - 32" in (folder / ".hydra/config.yaml").read_text(), (
            "a resume that failed changes nothing"
        )
    output = run_well("-m", "src.train", f"resume={folder}", "trainer.max_epochs=3", "optimizer.weight_decay=0.1")
    assert "epoch   2" in output
    assert "epoch   0" not in output
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["config"]
    assert saved["model"]["optimizer"]["weight_decay"] == saved["optimizer"]["weight_decay"] == 0.1
    overrides = (folder / ".hydra/overrides.yaml").read_text()
    assert overrides.index("trainer.max_epochs=1") < overrides.index("trainer.max_epochs=3")
    config = (folder / ".hydra/config.yaml").read_text()
    assert "max_epochs: 3" in config
    assert "seed: ${seed}" in config, "the rest is as it was, so that reports find equal settings equal"


def test_a_checkpoint_that_names_files_outside_its_folder_is_refused_and_they_stay(
    uninterrupted: Path, tmp_path: Path
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    victim = tmp_path / "victim.ckpt"
    victim.touch()
    last = tmp_path / "run/checkpoints/last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    (state,) = (state for name, state in checkpoint["callbacks"].items() if name.startswith("RunCheckpoint"))
    state["kth_best_model_path"] = f"{state['dirpath']}/../../victim.ckpt"
    torch.save(checkpoint, last)
    done = run_command("-m", "src.train", f"resume={tmp_path}/run", "trainer.max_epochs=7")
    assert (done.returncode, "outside" in done.stderr, victim.exists()) == (1, True, True), done.stderr


@pytest.mark.parametrize("option", ["seed=5", "seed=null", "++optimized_metric=val/loss", "optimized_mode=min"])
def test_a_run_that_goes_on_keeps_what_all_of_it_depends_on(run: Path, option: str) -> None:
    key, _, value = option.partition("=")
    with pytest.raises(RunError, match=re.escape(f"{option}: the run began with ")):
        cli.go_on({"resume": str(run), key: value})
    assert cli.go_on({"resume": str(run), "seed": "0", "optimized_metric": "val/acc"}) == "resumed", "the same"


def test_a_schedule_that_watches_validations_follows_how_often_they_come(config) -> None:
    _, _, folder = train_here(config(*QUICK, *SILENT, "trainer.max_epochs=1", "scheduler=plateau", "test=false"))
    cli.go_on({"resume": str(folder)})
    resumed = compose("resumed", ["trainer.check_val_every_n_epoch=3"])
    assert resumed.scheduler.frequency == resumed.model.scheduler.frequency == 3


def test_resuming_something_else_than_a_run_says_what_is_wrong(tmp_path: Path) -> None:
    cases = {f"resume={tmp_path}/nowhere": "there is no folder", f"resume={tmp_path}": "is no run folder"}
    for argument, message in cases.items():
        done = run_command("-m", "src.train", argument)
        assert done.returncode == 1
        assert re.fullmatch(f"error: .*{message}.*", done.stderr.splitlines()[-1]), done.stderr
        assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
