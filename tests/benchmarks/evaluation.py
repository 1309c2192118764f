"""Evaluating a run against a bare loop over the same batches."""

import tempfile
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from src.callbacks.processor import Processor
from src.eval import evaluate
from src.evaluation.corruptions import ALL, Corruption
from src.runs.build import build
from src.runs.run import open_run
from src.train import train
from tests.benchmarks.table import Row, Setting, alternate, wait
from tests.benchmarks.training import config, quietly
from tests.conftest import composed


def evaluation_rows(setting: Setting) -> list[Row]:
    """`src.eval` of a TinyVGG on CIFAR-10's test images: its loop by a bare one, and all the rest in seconds."""
    short = ["trainer.precision=32-true", "trainer.limit_train_batches=5", "trainer.max_epochs=1"]
    cfg = config(setting, *short, "~callbacks.probe")
    quietly(lambda: train(cfg))
    checkpoint = Path(cfg.paths.output_dir, "checkpoints/last.ckpt")

    question = composed(f"ckpt_path={checkpoint}", f"paths.output_dir={tempfile.mkdtemp(prefix='bench')}", name="eval")
    rest = []

    def ours() -> float:
        start = time.perf_counter()
        metrics, _ = quietly(lambda: evaluate(question))
        loop = 10_000 / metrics["test/images_per_s"]
        rest.append(time.perf_counter() - start - loop)
        return loop

    run = open_run(checkpoint)
    device = setting.device
    data: Any = run.datamodule
    data.prepare_data()
    data.setup("test")
    loader, network = data.test_dataloader(), run.network.to(device)

    @torch.no_grad()
    def bare() -> float:
        start = time.perf_counter()
        for images, labels in loader:
            images, labels = images.to(device), labels.to(device)
            network(data.preprocess.to(device)(images).contiguous(memory_format=torch.channels_last)).softmax(dim=1)
        wait(device)
        return time.perf_counter() - start

    ours(), bare()  # to warm up
    ratio, seconds = alternate(ours, bare, setting.repeats)
    rest.sort()

    options = {"logger": False, "enable_checkpointing": False, "limit_test_batches": 20}  # of 128 images
    trainer: Any = quietly(lambda: build(run.config.trainer, callbacks=[Processor()], **options))
    severities = cycle(range(1, 6))

    def tested(how: Corruption | None) -> float:
        data.corrupts, start = how, time.perf_counter()
        quietly(lambda: trainer.test(run.model, datamodule=data, verbose=False))
        return time.perf_counter() - start

    def corrupted() -> float:
        severity = next(severities)
        return sum(tested(Corruption(name, severity)) for name in ALL) / len(ALL)

    tested(None)  # to warm up
    costs, times = alternate(corrupted, lambda: tested(None), setting.repeats)
    return [
        Row("evaluation of 10,000 images: src.eval / bare loop", ratio, "x", at_most=1.1,
            detail=f"{seconds[0]:.2f} s / {seconds[1]:.2f} s"),
        Row(f"evaluation of {len(ALL)} corruptions: corrupted / as they are", costs, "x", at_most=1.5,
            detail=f"{times[0]:.2f} s / {times[1]:.2f} s"),
        Row("evaluation: metrics, figures and files", rest[len(rest) // 2], "s", at_most=15),
    ]  # fmt: skip
