"""Kills at random moments: whatever a run trains with, it goes on to the weights and metrics of one left alone."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.runs.folder import LAST
from src.runs.record import read_results
from tests.conftest import SILENT, assert_equal_runs, run_well
from tests.warm import Command

FEW = [*("trainer.precision=32-true", "trainer.max_epochs=5", "data.limit=600", "data.batch_size=8"), *SILENT]
# Dropout, augmentation and momentum: all that draws numbers or keeps state.
DROPS = [
    "model=vgg11",
    "model.network.stages=[8,M,8,M]",
    "model.network.hidden=[32]",
    "data/augment=trivial",
    "optimizer.lr=0.01",
]
NORMS = ["model=resnet20_cifar", "model.network.depth=8"]
VARIANTS = {
    "sgd and one cycle": [*DROPS, "scheduler=onecycle"],
    "adamw and a plateau": [*DROPS, "optimizer=adamw", "scheduler=plateau", "scheduler.factory.patience=0"],
    "muon and steps": [*NORMS, "optimizer=muon", "scheduler=step", "scheduler.factory.step_size=2"],
    "accumulation": [*DROPS, "trainer.accumulate_grad_batches=3"],
    "clipping and milestones": [
        *DROPS,
        "trainer.gradient_clip_val=0.1",
        "scheduler=multistep",
        "scheduler.factory.milestones=[1,3]",
    ],
    "an average": [*NORMS, "callbacks=ema"],
    "an average and accumulation": [*NORMS, "callbacks=ema", "trainer.accumulate_grad_batches=2"],
    "lookahead": [*NORMS, "callbacks=lookahead"],
    "a head first": [*NORMS, "callbacks=finetune", "callbacks.finetune.unfreeze_at=2"],
    "a head alone": [*NORMS, "callbacks=linear_probe"],
    "workers": [*DROPS, "data.num_workers=2"],
    "mixed images": [*NORMS, "+data.augment.mix._target_=src.data.mixing.MixUpOrCutMix"],
    "balanced classes": [*DROPS, "data.balance=true"],
    "steps without epochs": [*DROPS, "trainer.max_epochs=-1", "trainer.max_steps=300"],
    "streamed files": [
        *DROPS,
        "data=folder",
        "data.root=IMAGES",
        "data.mode=stream",
        "data.num_workers=1",
        "data.image_size=32",
    ],
    "two networks": ["model=sngan", "model.network.width=4", "data.val_size=0"],
    "two processes": [*DROPS, "trainer=ddp_cpu"],
}
SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGKILL]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 60 small PNG files."""
    root, source = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for label in range(3):
        (root / f"class{label}").mkdir()
        for number in range(60):
            pixels = source.integers(0, 80 * (label + 1), (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class{label}/{number}.png")
    return root


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.tried("kills", len(SIGNALS))
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_stopped_at_random_moments_ends_as_one_left_alone(variant: str, images: Path, tmp_path: Path) -> None:
    words = [word.replace("IMAGES", str(images)) for word in VARIANTS[variant]]
    trainer = [] if "trainer=ddp_cpu" in words else ["trainer=cpu"]
    options = [*FEW, *trainer, *words, f"paths.log_dir={tmp_path}/logs"]
    run_well("-m", "src.train", *options, f"hydra.run.dir={tmp_path}/whole")
    seconds = read_results(tmp_path / "whole")["seconds"]
    for number, signum in enumerate(SIGNALS):
        folder = tmp_path / str(number)
        command = Command("-m", "src.train", *options, f"hydra.run.dir={folder}", stdout=subprocess.PIPE)
        next((line for line in command.stdout if line.startswith("epoch   0 ")), None)
        time.sleep(random.Random(f"{variant} {number}").uniform(0, 0.8) * seconds)
        command.send_signal(signum)
        command.wait()
        if not (folder / LAST).exists():  # killed before its first checkpoint was whole
            shutil.rmtree(folder)
            run_well("-m", "src.train", *options, f"hydra.run.dir={folder}")
        else:
            run_well("-m", "src.train", f"resume={folder}", f"paths.log_dir={tmp_path}/logs")
        assert_equal_runs(folder, tmp_path / "whole")
        assert not list(folder.glob("**/*.partial*"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.tried("kills", len(SIGNALS))
def test_a_sweep_stopped_at_random_moments_ends_as_one_left_alone(tmp_path: Path) -> None:
    options = [*FEW, *DROPS, "trainer=cpu", "trainer.max_epochs=3", "seed=0,1", f"paths.log_dir={tmp_path}/logs"]
    sweep = ["-m", "src.train", "-m", *options]
    start = time.monotonic()
    run_well(*sweep, f"hydra.sweep.dir={tmp_path}/whole")
    seconds = time.monotonic() - start
    for number, signum in enumerate(SIGNALS):
        folder = tmp_path / str(number)
        command = Command(*sweep, f"hydra.sweep.dir={folder}", stdout=subprocess.PIPE)
        next(line for line in command.stdout if line.startswith("job 0 running"))
        time.sleep(random.Random(f"sweep {number}").uniform(0, 0.8) * seconds)
        command.send_signal(signum)
        command.wait()
        run_well(*sweep, f"hydra.sweep.dir={folder}")
        for job in ("0", "1"):
            assert_equal_runs(folder / job, tmp_path / "whole" / job)
        (row,) = json.loads((folder / "summary.json").read_text())
        assert row["n"] == len(set(row["metrics"]["val/loss"]["values"])) == 2
