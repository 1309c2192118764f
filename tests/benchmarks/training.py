"""Training through `train(cfg)` against hand-written loops and other Trainers, on the same batches."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy
from torchvision import datasets

from src.callbacks.dynamics import Dynamics
from src.callbacks.processor import fastest_precision
from src.runs.build import build, build_model, compose
from src.train import train
from tests.benchmarks.input_pipeline import NORMALIZE, per_image
from tests.benchmarks.table import Row, Setting, alternate, wait

PLAIN = ["trainer.precision=32-true", "model.channels_last=false"]  # torch's own defaults
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
        wait(pl_module.device)
        self.end = time.perf_counter()
        Probe.steps.append(self.end - self.start)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.end is not None
        Probe.rest.append(time.perf_counter() - self.end)


def config(setting: Setting, *overrides: str) -> DictConfig:
    """A training, of CIFAR-10 unless it says otherwise, with all default callbacks and loggers, in a folder for it."""
    folder = tempfile.mkdtemp(prefix="bench")
    store = ["data.store=device"] if setting.gpu else []
    if not any(override.startswith("data=") for override in overrides):
        overrides = ("data=cifar10", f"data.root={setting.root}", *overrides)
    cfg = compose("train", [
        "data.val_size=0", "scheduler=none", "test=false", *setting.trainer, *store,
        f"paths.output_dir={folder}", "+callbacks.probe._target_=tests.benchmarks.training.Probe", *overrides,
    ])  # fmt: skip
    if cfg.trainer.precision == "fastest":  # the loop that it is compared with takes the same
        cfg.trainer.precision = fastest_precision()
    return cfg


def quietly(function: Callable[[], Any]) -> Any:
    """Calls a function without what it prints."""
    logging.disable(logging.INFO)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = function()
    logging.disable(logging.NOTSET)
    return result


class Step:
    """The training step that a careful person writes, for the network and the optimizer of a config."""

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        model: Any = build_model(cfg).to(device)
        self.memory_format = model.memory_format
        self.network = model.network.train()
        self.optimizer = model.optimizer(self.network.parameters())
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=cfg.trainer.precision == "bf16-mixed")

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        images = images.contiguous(memory_format=self.memory_format)
        self.optimizer.zero_grad()
        with self.autocast:
            loss = nn.functional.cross_entropy(self.network(images), labels)
        loss.backward()
        self.optimizer.step()


def hand_written(
    cfg: DictConfig, device: torch.device, steps: int, epochs: int, make: Callable[..., Any] = Step
) -> list[float]:
    """Seconds of each epoch of a hand-written loop over the same batches; `make` makes its step."""
    data: Any = build(cfg.data)
    here = SimpleNamespace(root_device=device)
    data.trainer = SimpleNamespace(strategy=here, global_rank=0, world_size=1, training=False)  # for data.store=device
    data.prepare_data()
    data.setup("fit")
    loader, step = data.train_dataloader(), make(cfg, device)
    seconds = []
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        start = time.perf_counter()
        for number, (images, labels) in enumerate(loader):
            if number == steps:
                break
            step(*data.augment(images.to(device), labels.to(device), epoch, number))
        wait(device)
        seconds.append(time.perf_counter() - start)
    return seconds


def epoch_rows(setting: Setting) -> list[Row]:
    """One whole epoch against the hand-written loop; VGG11-BN's steps are timed on a part and scaled up."""
    rows = []
    for name, steps, epochs, most in (("tinyvgg", 100, 3, 1.05), ("vgg11_bn", 12, 2, 1.02)):
        if setting.gpu:
            steps, epochs = FULL_EPOCH, 3
        ratio, seconds = beside_hand_written(setting, steps, epochs, f"model={name}")
        rows.append(Row(f"epoch of {name}, batch 128: train(cfg) / hand-written loop", ratio, "x", at_most=most,
                        detail=f"{seconds[0]:.1f} s / {seconds[1]:.1f} s"))  # fmt: skip
    return rows


def beside_hand_written(
    setting: Setting, steps: int, epochs: int, *overrides: str, make: Callable[..., Any] = Step
) -> tuple[float, list[float]]:
    """`train(cfg)` by the hand-written loop, and the seconds of each for an epoch of CIFAR-10's 390 batches."""
    overrides = (*overrides, f"trainer.limit_train_batches={steps}", f"trainer.max_epochs={epochs}")

    def ours() -> float:
        quietly(lambda: train(config(setting, *overrides)))
        return min(Probe.steps[1:]) / steps * FULL_EPOCH + min(Probe.rest)

    def plain() -> float:
        seconds = hand_written(config(setting, *overrides), setting.device, steps, epochs, make)
        return min(seconds[1:]) / steps * FULL_EPOCH

    return alternate(ours, plain, setting.repeats)


def tutorial_rows(setting: Setting) -> list[Row]:
    """A whole first epoch of TinyVGG by the loop of the tutorials, with torchvision's PIL images in a DataLoader."""
    accuracies: dict[str, list[float]] = {}

    def ours() -> float:
        metrics, _ = quietly(lambda: train(config(setting, "trainer.max_epochs=1", "test=true")))
        accuracies.setdefault("ours", []).append(metrics["test/acc"])
        return Probe.steps[-1] + Probe.rest[-1]

    def tutorial(workers: int) -> float:
        batches, step = (
            per_image(setting.root, on_tensors=False, workers=workers),
            Step(config(setting, *PLAIN), setting.device),
        )
        start = time.perf_counter()
        for images, labels in batches():
            step(images.to(setting.device), labels.to(setting.device))
        wait(setting.device)
        seconds = time.perf_counter() - start
        accuracies.setdefault(str(workers), []).append(accuracy(step.network, setting.root, setting.device))
        return seconds

    rows = []
    for workers in (0, 2):
        ratio, seconds = alternate(lambda w=workers: tutorial(w), ours, setting.repeats)  # type: ignore[misc]
        reached = f"{median(accuracies[str(workers)]):.1%} / {median(accuracies['ours']):.1%} on the test images"
        rows.append(Row(f"epoch of tinyvgg, batch 128: PIL DataLoader, {workers} workers / train(cfg)", ratio, "x",
                        at_least=1.6, detail=f"{seconds[0]:.1f} s / {seconds[1]:.1f} s, {reached}"))  # fmt: skip
    return rows


@torch.no_grad()
def accuracy(network: nn.Module, root: str, device: torch.device) -> float:
    """Share of CIFAR-10's test images that a network gets right."""
    source = datasets.CIFAR10(root, train=False, transform=NORMALIZE)
    network.eval()
    hits = 0
    for images, labels in DataLoader(source, batch_size=500):
        hits += int((network(images.to(device)).argmax(dim=1).cpu() == labels).sum())
    return hits / len(source)


class Thousand(nn.Module):
    """A network of 1,030 parameters: the framework's part of a step is nearly all of it."""

    def __init__(self, num_classes: int = 10, image_size: int = 32, channels: int = 3) -> None:
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


def tiny_step_rows(setting: Setting, steps: int = 1500) -> list[Row]:
    """A network of 1,000 parameters at batch 8: what the framework adds to a step."""
    limits = [f"trainer.limit_train_batches={steps}", "trainer.max_epochs=2"]
    overrides = ["data.batch_size=8", "trainer.precision=32-true", *limits]

    def ours() -> float:
        cfg = config(setting, *overrides, "model.network._target_=tests.benchmarks.training.Thousand",
                     "~model.network.hidden_units")  # fmt: skip
        quietly(lambda: train(cfg))
        return Probe.steps[-1]

    def other(module: type[Bare], **options: Any) -> Callable[[], float]:
        def run() -> float:
            data = build(config(setting, "data.batch_size=8").data)
            probe = Probe()
            trainer = Trainer(
                accelerator="gpu" if setting.gpu else "cpu", max_epochs=2, limit_train_batches=steps,
                num_sanity_val_steps=0, default_root_dir=tempfile.mkdtemp(prefix="bench"), **options,
            )  # fmt: skip
            trainer.callbacks.append(probe)
            quietly(lambda: trainer.fit(module(Thousand()), data))
            return Probe.steps[-1]

        return run

    bare, habits = other(Bare, barebones=True), other(Habits)
    to_bare, seconds = alternate(ours, bare, setting.repeats)
    to_habits, more = alternate(ours, habits, setting.repeats)
    micro = 1e6 / steps
    return [
        Row("tiny step: train(cfg) / Lightning barebones", to_bare, "x", at_most=1.15,
            detail=f"{seconds[0] * micro:.0f} us / {seconds[1] * micro:.0f} us"),
        Row("tiny step: train(cfg) / Lightning with common habits", to_habits, "x", at_most=0.5,
            detail=f"{more[0] * micro:.0f} us / {more[1] * micro:.0f} us"),
    ]  # fmt: skip


class TimedDynamics(Dynamics):
    """Counts the seconds that it takes itself, whatever the device has to do for it included."""

    seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        TimedDynamics.seconds = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._timed(pl_module, lambda: super(TimedDynamics, self).on_train_batch_end(
            trainer, pl_module, outputs, batch, batch_idx))  # fmt: skip

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._timed(pl_module, lambda: super(TimedDynamics, self).on_train_epoch_end(trainer, pl_module))

    def _timed(self, module: LightningModule, hook: Callable[[], None]) -> None:
        wait(module.device)
        start = time.perf_counter()
        hook()
        wait(module.device)
        TimedDynamics.seconds += time.perf_counter() - start


def dynamics_rows(setting: Setting) -> list[Row]:
    """What `callbacks=dynamics` takes of an epoch of TinyVGG: its own time by that of all steps."""
    watch = "+callbacks.dynamics._target_=tests.benchmarks.training.TimedDynamics"
    steps = ["trainer.limit_train_batches=100", "trainer.max_epochs=2"]
    shares = []
    for _ in range(setting.repeats):
        folder = f"+callbacks.dynamics.folder={tempfile.mkdtemp(prefix='bench')}"
        quietly(lambda where=folder: train(config(setting, watch, where, *steps)))  # type: ignore[misc]
        shares.append(TimedDynamics.seconds / sum(Probe.steps))
    return [Row("epoch of tinyvgg, batch 128: share of callbacks=dynamics", 100 * median(shares), "%", at_most=2)]


class Kernels(Callback):
    """The kernels and copies that the GPU runs in each of some steps of a training."""

    FIRST, LAST = 20, 39  # batches

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.FIRST:
            self.profile = gpu_profile()
            self.profile.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.LAST:
            Kernels.each = stop_and_count(self.profile) / (self.LAST - self.FIRST + 1)


def gpu_profile() -> torch.profiler.profile:
    return torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    )


def stop_and_count(profile: torch.profiler.profile) -> int:
    """How many kernels and copies ran on the GPU since the profile was started."""
    torch.cuda.synchronize()
    profile.stop()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profile.events())


def kernel_rows(setting: Setting) -> list[Row]:
    """Kernels in a step of TinyVGG, fetching and augmentation included: `train(cfg)` by the hand-written loop."""
    probe = "+callbacks.kernels._target_=tests.benchmarks.training.Kernels"
    quietly(lambda: train(config(setting, "trainer.max_epochs=1", "trainer.limit_train_batches=50", probe)))
    cfg, steps = config(setting), Kernels.LAST - Kernels.FIRST + 1
    hand_written(cfg, setting.device, steps, 1)
    profile = gpu_profile()
    profile.start()
    hand_written(cfg, setting.device, steps, 1)
    plain = stop_and_count(profile) / steps
    return [Row("kernels in a step of tinyvgg: train(cfg) / hand-written loop", Kernels.each / plain, "x",
                detail=f"{Kernels.each:.0f} / {plain:.0f}")]  # fmt: skip
