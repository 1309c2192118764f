"""Whatever a training keeps between two steps goes on to the last bit, wherever it is stopped or killed."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import count, product
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from src.callbacks.checkpoint import AtomicCheckpointIO
from src.modules.base import Task
from src.runs.record import read_results
from src.runs.run import resumed_config
from src.train import train
from tests.conftest import SILENT, assert_equal_runs, composed, train_here

# 5 steps an epoch. Dropout draws numbers, batch norm and momentum keep state.
SMALL = [
    *("data.limit=200", "data.batch_size=32", "trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=4"),
    *("test=false", "logger.tensorboard=null", "optimizer=sgd", *SILENT),
]
VGG = ["model=vgg11", "model.network.stages=[4,M,8,M]", "model.network.hidden=[8]", "model.network.batch_norm=true"]
NETWORK = [*VGG, "optimizer.lr=0.01"]
RESNET = ["model=resnet20_cifar", "model.network.depth=8", "optimizer.lr=0.1"]
GAN = ["model=sngan", "model.network.width=2", "model.network.noise_size=8", "data.image_size=16"]
PLATEAU = ["scheduler=plateau", "scheduler.factory.patience=0", "optimizer.lr=0.3"]
VARIANTS = {
    "plain": NETWORK,
    "plateau": [*VGG, *PLATEAU],
    "accumulation": [*NETWORK, "trainer.accumulate_grad_batches=2"],
    "frozen": [*RESNET, "callbacks=linear_probe"],
    "finetune": [*RESNET, "callbacks=finetune", "callbacks.finetune.unfreeze_at=2"],
    "average": [*NETWORK, "callbacks=ema", "trainer.accumulate_grad_batches=2"],
    "lookahead": [*NETWORK, "callbacks=lookahead", "callbacks.lookahead.every=2"],
    "steps": [*NETWORK, "trainer.max_steps=18", "trainer.max_epochs=-1"],
    "validations": [*NETWORK, "+trainer.val_check_interval=2"],
    "early": [*VGG, "callbacks.early_stopping.patience=1", "optimizer.lr=1.0"],  # 3 epochs
    "workers": [*NETWORK, "data.num_workers=2"],
    "dynamics": [*NETWORK, "callbacks=dynamics"],
    "gradients": [*NETWORK, "callbacks=gradients", "trainer.accumulate_grad_batches=2"],
    "gan": [*GAN, "model.discriminator_steps=2", "scheduler=triangle"],
}


# times, paths, a display, and what a later start may change
OF_THIS_RUN = ("seconds", "images_per_s", "Throughput", "best_k_models", "current_score", "max_steps")
QUICK_STOPS = [
    *(("plateau", 3), ("accumulation", 3), ("frozen", 2), ("average", 3), ("steps", 5), ("validations", 2), ("gan", 3)),
    ("dynamics", 3),
    ("gradients", 3),
]
KILLS = [*product(["plain", "plateau", "average", "steps", "gan"], (2, 3, 4), (False, True)), ("plateau", 1, True)]
KILLS += [*product(["early", "dynamics"], (2, 3), (False, True))]
QUICK_KILLS = [("plateau", 1, True), ("plateau", 2, True), ("plateau", 3, False), ("early", 3, True)]


def some_quick(cases: Iterable[tuple], quick: list[tuple]) -> list[Any]:
    return [pytest.param(*case, marks=[] if case in quick else pytest.mark.slow) for case in cases]


class Killed(BaseException):
    """Ends a training as SIGKILL does: nothing is saved that was not."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a variant's run, which is trained once."""
    folders: dict[str, Path] = {}

    def run(variant: str) -> Path:
        if variant not in folders:
            parent = tmp_path_factory.mktemp(variant)
            *_, folders[variant] = train_here(composed(*SMALL, *VARIANTS[variant], folder=parent))
        return folders[variant]

    return run


@pytest.mark.tried("stops")
@pytest.mark.parametrize(("variant", "step"), some_quick(product(VARIANTS, (2, 3, 5, 9)), QUICK_STOPS))
def test_a_stopped_training_goes_on_as_if_it_had_not_been(
    variant: str, step: int, uninterrupted: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = count(1)

    def stop(*_: Any) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "on_train_batch_start", stop)
        with pytest.raises(SystemExit) as exit:
            train_here(composed(*SMALL, *VARIANTS[variant], folder=tmp_path))
    assert exit.value.code == 143
    train(OmegaConf.create(resumed_config(str(tmp_path / "run"))))
    assert_equal(tmp_path / "run", uninterrupted(variant))


@pytest.mark.parametrize("first", [7, 10])
def test_a_training_that_its_steps_ended_within_an_epoch_goes_on_with_more_as_if_it_had_not(
    first: int, tmp_path: Path
) -> None:
    steps = [*SMALL, *VARIANTS["steps"], "scheduler=none"]
    *_, whole = train_here(composed(*steps, folder=tmp_path / "whole"))
    *_, folder = train_here(composed(*steps, f"trainer.max_steps={first}", folder=tmp_path))
    config = OmegaConf.create(resumed_config(str(folder)))
    config.trainer.max_steps = 18
    train(config)
    assert_equal(folder, whole)


def test_a_training_killed_after_its_last_step_within_an_epoch_keeps_what_that_epoch_said(tmp_path: Path) -> None:
    steps = [*SMALL, *VARIANTS["steps"], "scheduler=none", "trainer.max_steps=7"]
    *_, whole = train_here(composed(*steps, folder=tmp_path / "whole"))
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/results.json").unlink()
    train(OmegaConf.create(resumed_config(str(tmp_path / "run"))))
    assert_equal(tmp_path / "run", whole)


@pytest.mark.tried("stops")
@pytest.mark.parametrize(("variant", "save", "written"), some_quick(KILLS, QUICK_KILLS))
def test_a_training_killed_before_or_after_a_save_goes_on_as_if_it_had_not_been(
    variant: str,
    save: int,
    written: bool,
    uninterrupted: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saves, write = count(1), AtomicCheckpointIO.save_checkpoint

    def killed(self: Any, checkpoint: Any, path: Any, **options: Any) -> None:
        last = next(saves) == save
        if written or not last:
            write(self, checkpoint, path, **options)
        if last:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", killed)
        with pytest.raises(Killed):
            train_here(composed(*SMALL, *VARIANTS[variant], folder=tmp_path))
    (tmp_path / "run/checkpoints/.last.1.partial.ckpt").touch()
    train(OmegaConf.create(resumed_config(str(tmp_path / "run"))))
    assert_equal(tmp_path / "run", uninterrupted(variant))


def assert_equal(folder: Path, expected: Path) -> None:
    """The same checkpoints, which hold the same, the same rows of metrics, and the same results."""
    names, expected_names = (sorted(p.name for p in f.glob("checkpoints/*")) for f in (folder, expected))
    assert names == expected_names
    for name in names:
        ours, theirs = (dict(walk(torch.load(f / "checkpoints" / name, weights_only=True))) for f in (folder, expected))
        assert list(ours) == list(theirs)
        for key, value in theirs.items():
            assert torch.equal(torch.as_tensor(ours[key]), torch.as_tensor(value)), f"{name}: {key}"
    kept = [{p.name: p.read_bytes() for p in (*f.glob("dynamics/*"), *f.glob("*.csv"))} for f in (folder, expected)]
    assert kept[0] == kept[1]
    assert_equal_runs(folder, expected)
    assert read_results(folder)["epochs"] == read_results(expected)["epochs"]


def walk(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The numbers in a checkpoint by their place in it, but for those that differ between any two runs."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from walk(child, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from walk(child, f"{name}.{index}")
    elif isinstance(value, int | float | torch.Tensor) and not any(word in name for word in OF_THIS_RUN):
        yield name, value
