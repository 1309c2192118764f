"""Training through `train(cfg)` against hand-written loops and other Trainers, on the same batches."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch import nn
from torchmetrics.classification import MulticlassAccuracy

from src.run import build_datamodule, build_model
from src.train import train
from tests.benchmarks.table import Row, alternate

CONF = str(Path(__file__).resolve().parents[2] / "conf")
FULL_EPOCH = 390  # steps of CIFAR-10's 50,000 images at batch 128


class Probe(Callback):
    """The seconds of each epoch's steps, and of all else until the next epoch starts."""

    def __init__(self) -> None:
        Probe.steps, Probe.rest = [], []
        self.end: float | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = time.perf_counter()
        if self.end is not None:
            Probe.rest.append(self.start - self.end)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end = time.perf_counter()
        Probe.steps.append(self.end - self.start)


def config(root: str, *overrides: str) -> DictConfig:
    """A training on CIFAR-10 with every default callback and logger, in a folder that goes away."""
    folder = tempfile.mkdtemp(prefix="bench")
    with initialize_config_dir(CONF, version_base="1.3"):
        return compose("train", [
            "data=cifar10", f"data.root={root}", "data.val_size=0", "trainer=cpu", "scheduler=none", "test=false",
            f"paths.output_dir={folder}", "+callbacks.probe._target_=tests.benchmarks.training.Probe", *overrides,
        ])  # fmt: skip


def quietly(function: Callable[[], Any]) -> Any:
    """Calls a function without what it prints."""
    logging.disable(logging.INFO)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = function()
    logging.disable(logging.NOTSET)
    return result


def hand_written(cfg: DictConfig, steps: int, epochs: int) -> list[float]:
    """Seconds of each epoch of the loop a careful person writes: the same loader, network and optimizer."""
    data, model = build_datamodule(cfg), build_model(cfg, pretrained=False)
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    network = model.network.train()
    optimizer = model.optimizer_factory(network.parameters())
    seconds = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        start = time.perf_counter()
        for number, (images, labels) in enumerate(loader):
            if number == steps:
                break
            images, labels = data.augment(images, labels, epoch, number)
            images = images.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def epoch_rows(root: str, repeats: int) -> list[Row]:
    """One whole epoch against the hand-written loop; VGG11-BN's steps are timed on a part and scaled up."""
    rows = []
    for name, steps, epochs, most in (("tinyvgg", 100, 3, 1.05), ("vgg11_bn", 12, 2, 1.02)):
        overrides = [f"model={name}", f"trainer.limit_train_batches={steps}", f"trainer.max_epochs={epochs}"]

        def ours(overrides: list[str] = overrides, steps: int = steps) -> float:
            quietly(lambda: train(config(root, *overrides)))
            return min(Probe.steps[1:]) / steps * FULL_EPOCH + min(Probe.rest)

        def plain(overrides: list[str] = overrides, steps: int = steps, epochs: int = epochs) -> float:
            return min(hand_written(config(root, *overrides), steps, epochs)[1:]) / steps * FULL_EPOCH

        ratio, seconds = alternate(ours, plain, repeats)
        rows.append(Row(f"epoch of {name}, batch 128: train(cfg) / hand-written loop", ratio, "x", at_most=most,
                        detail=f"{seconds[0]:.1f} s / {seconds[1]:.1f} s"))  # fmt: skip
    return rows


class Thousand(nn.Module):
    """A network of 1,030 parameters: the framework's part of a step is nearly all of it."""

    def __init__(self, num_classes: int = 10, image_size: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 15, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.classifier = nn.Linear(15 * 4, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.flatten(self.features(images), 1))


class Bare(LightningModule):
    """The least that Lightning needs: a loss, no metric, no log."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class Habits(Bare):
    """What most tutorials show: loss and accuracy logged at each step to the progress bar and over the epoch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network)
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = nn.functional.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.log("train/loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.accuracy, on_step=True, on_epoch=True, prog_bar=True)
        return loss


def tiny_step_rows(root: str, repeats: int, steps: int = 1500) -> list[Row]:
    """A network of 1,000 parameters at batch 8: what the framework adds to a step."""
    overrides = ["data.batch_size=8", f"trainer.limit_train_batches={steps}", "trainer.max_epochs=2"]

    def ours() -> float:
        cfg = config(root, *overrides, "model.network._target_=tests.benchmarks.training.Thousand",
                     "~model.network.hidden_units")  # fmt: skip
        quietly(lambda: train(cfg))
        return Probe.steps[-1]

    def other(module: type[Bare], **options: Any) -> Callable[[], float]:
        def run() -> float:
            data = build_datamodule(config(root, "data.batch_size=8"))
            probe = Probe()
            trainer = Trainer(
                accelerator="cpu", max_epochs=2, limit_train_batches=steps, num_sanity_val_steps=0,
                default_root_dir=tempfile.mkdtemp(prefix="bench"), **options,
            )  # fmt: skip
            trainer.callbacks.append(probe)
            quietly(lambda: trainer.fit(module(Thousand()), data))
            return Probe.steps[-1]

        return run

    bare, habits = other(Bare, barebones=True), other(Habits)
    to_bare, seconds = alternate(ours, bare, repeats)
    to_habits, more = alternate(ours, habits, repeats)
    micro = 1e6 / steps
    return [
        Row("tiny step: train(cfg) / Lightning barebones", to_bare, "x", at_most=1.15,
            detail=f"{seconds[0] * micro:.0f} us / {seconds[1] * micro:.0f} us"),
        Row("tiny step: train(cfg) / Lightning with common habits", to_habits, "x", at_most=0.5,
            detail=f"{more[0] * micro:.0f} us / {more[1] * micro:.0f} us"),
    ]  # fmt: skip
