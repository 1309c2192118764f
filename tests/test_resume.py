"""A run that was stopped goes on as if it had not been: same weights, same metrics, to the last bit."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.conftest import SILENT, run_command
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
    done = run_command("-m", "src.train", *ARGUMENTS, f"hydra.run.dir={folder}", *arguments)
    assert done.returncode == 0, done.stderr


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


def outcome(folder: Path) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
    """Last weights, and all metrics but the times."""
    weights = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    frame = pd.read_csv(folder / "csv/metrics.csv").drop(columns="train/images_per_s")
    return weights, frame


def assert_equal_outcome(folder: Path, expected: Path) -> None:
    weights, frame = outcome(folder)
    expected_weights, expected_frame = outcome(expected)
    for name, value in expected_weights.items():
        assert torch.equal(weights[name], value), name
    pd.testing.assert_frame_equal(frame, expected_frame, check_exact=True)
    stem = "epoch_*.ckpt"
    assert [p.name for p in folder.glob(f"checkpoints/{stem}")] == [
        p.name for p in expected.glob(f"checkpoints/{stem}")
    ]
    results, expected_results = (json.loads((f / "results.json").read_text()) for f in (folder, expected))
    images, expected_images = (r["images_per_s"] * r["train_seconds"] for r in (results, expected_results))
    assert images > 0.75 * expected_images, "all but the part of an epoch that was cut off counts"
    assert results["seconds"] > results["train_seconds"]
    metrics, expected_metrics = results["metrics"], expected_results["metrics"]
    del metrics["train/images_per_s"], expected_metrics["train/images_per_s"]
    assert metrics == expected_metrics


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
    done = run_command("-m", "src.train", f"resume={tmp_path}/moved")
    assert done.returncode == 0, done.stderr
    assert_equal_outcome(tmp_path / "moved", uninterrupted)
    told = [json.loads((run / "results.json").read_text())["command"] for run in (tmp_path / "moved", uninterrupted)]
    assert told[0] == told[1], "what trains it from its start"
    assert told[0].startswith("python -m src.train ")
    assert not (tmp_path / "first").exists()
    assert not (tmp_path / "hacked").exists()


def test_a_run_killed_between_its_training_and_its_test_only_tests(uninterrupted: Path, tmp_path: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    done = run_command("-m", "src.train", f"resume={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert "epoch   " not in done.stdout
    assert "no step was left to train" in done.stdout + done.stderr
    assert_equal_outcome(tmp_path / "run", uninterrupted)


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
    done = run_command("-m", "src.train", f"resume={folder}")
    assert done.returncode == 0, done.stderr
    assert_equal_outcome(folder, uninterrupted)


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
    done = run_command("-m", "src.train", *command)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (tmp_path / "logs/train/runs").iterdir()] == [folder.name]
    assert_equal_outcome(folder, uninterrupted)


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
    done = run_command("-m", "src.train", f"resume={folder}", "trainer.max_epochs=3", "optimizer.weight_decay=0.1")
    assert done.returncode == 0, done.stderr
    assert "epoch   2" in done.stdout
    assert "epoch   0" not in done.stdout
    saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["config"]
    assert saved["model"]["optimizer"]["weight_decay"] == saved["optimizer"]["weight_decay"] == 0.1
    overrides = (folder / ".hydra/overrides.yaml").read_text()
    assert overrides.index("trainer.max_epochs=1") < overrides.index("trainer.max_epochs=3")
    config = (folder / ".hydra/config.yaml").read_text()
    assert "max_epochs: 3" in config
    assert "seed: ${seed}" in config, "the rest is as it was, so that reports find equal settings equal"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random_moments_give_twenty_equal_results(uninterrupted: Path, tmp_path: Path) -> None:
    whole = time.monotonic()
    train(tmp_path / "timed")
    whole = time.monotonic() - whole
    for number in range(20):
        folder = tmp_path / str(number)
        process = start(*ARGUMENTS, f"hydra.run.dir={folder}")
        time.sleep(random.Random(number).uniform(0.5, 1.0) * whole)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (folder / "checkpoints/last.ckpt").exists():
            done = run_command("-m", "src.train", f"resume={folder}")
        else:  # killed before the end of the first epoch: there is nothing to go on from
            shutil.rmtree(folder, ignore_errors=True)
            done = run_command("-m", "src.train", *ARGUMENTS, f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr
        assert_equal_outcome(folder, uninterrupted)


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


def test_resuming_something_else_than_a_run_says_what_is_wrong(tmp_path: Path) -> None:
    cases = {f"resume={tmp_path}/nowhere": "there is no folder", f"resume={tmp_path}": "is no run folder"}
    for argument, message in cases.items():
        done = run_command("-m", "src.train", argument)
        assert done.returncode == 1
        assert re.fullmatch(f"error: .*{message}.*", done.stderr.splitlines()[-1]), done.stderr
        assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []
