"""Folders of any size: images a second against torchvision's ImageFolder, and the start on a million files."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from src.data.augment import RandomHorizontalFlip, RandomResizedCrop
from src.data.folder import ImageFolder
from src.data.preprocess import STATISTICS
from tests.benchmarks.input_pipeline import CONVERT, Batches, images_per_s, ours
from tests.benchmarks.process import FIRST_STEP, PEAK
from tests.benchmarks.table import Row, Setting

BATCH, SIZE = 32, 224
PHOTO = 375, 500  # height and width in pixels
WORKERS = 0, 2


def photo(seed: int) -> Image.Image:
    """A JPEG-like picture: large shapes, fine texture, and a little noise."""
    random, (height, width) = np.random.default_rng(seed), PHOTO
    shapes, texture = (
        Image.fromarray(random.integers(0, 256, (height // k, width // k, 3), np.uint8)).resize((width, height))
        for k in (75, 5)
    )
    noise = random.normal(0, 6, (height, width, 1))
    mixed = 0.8 * np.asarray(shapes, np.float32) + 0.2 * np.asarray(texture, np.float32) + noise
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def photos(root: Path, count: int, classes: int = 2) -> Path:
    """A folder of `count` of them in class folders."""
    for i in range(count):
        path = root / f"{i % classes:04}" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo(i).save(path, quality=90)
    return root


def streamed(root: Path, workers: int, cache: str) -> Callable[[], Batches]:
    augment = {"crop": RandomResizedCrop(SIZE), "flip": RandomHorizontalFlip()}
    options: dict[str, Any] = {"num_classes": None, "image_size": SIZE, "batch_size": BATCH, "mean": "imagenet"}
    data = ImageFolder(
        root=root,
        cache_dir=cache,
        mode="stream",
        num_workers=workers,
        val_size=0,
        test_size=1,
        augment=augment,
        **options,
    )
    epoch = ours(data, torch.device("cpu"))
    data._position = lambda: (0, 0)  # type: ignore[method-assign] # as while a Trainer trains
    return epoch


def image_folder(root: Path, workers: int) -> Callable[[], Batches]:
    mean, std = (list(STATISTICS["imagenet"][name]) for name in ("mean", "std"))
    steps = [v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), *CONVERT, v2.Normalize(mean, std)]
    source = datasets.ImageFolder(str(root), transform=v2.Compose(steps))
    loader = DataLoader(source, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)
    return lambda: iter(loader)


def streaming_rows(setting: Setting) -> list[Row]:
    """How many times ImageFolder's images/s ours gives, from 500x375 JPEGs to 224 px, normalised."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root, device = photos(Path(folder, "images"), 800), torch.device("cpu")
        size = sum(path.stat().st_size for path in root.rglob("*.jpg")) / 800e3
        for workers in WORKERS:
            mine, theirs = streamed(root, workers, f"{folder}/cache"), image_folder(root, workers)
            pairs = [
                (images_per_s(mine, 18, device, warm=4), images_per_s(theirs, 18, device, warm=4))
                for _ in range(setting.repeats)
            ]
            name = f"streamed JPEGs: images/s / ImageFolder, {workers} workers"
            each = [median(pair[i] for pair in pairs) for i in (0, 1)]
            detail = f"{each[0]:,.0f} / {each[1]:,.0f} images/s, {size:.0f} KB each"
            rows.append(Row(name, median(a / b for a, b in pairs), "x", at_least=1.0, detail=detail))
    return rows


def linked(root: Path, count: int, classes: int = 1000, sources: int = 100) -> Path:
    """`count` files in class folders, hard links to few images: a file of ext4 has 65,000 names at most."""
    originals = photos(root.parent / "originals", sources)
    files = sorted(originals.rglob("*.jpg"))
    for label in range(classes):
        (root / f"n{label:08}").mkdir(parents=True)
        for i in range(label, count, classes):
            os.link(files[i % sources], root / f"n{label:08}" / f"n{label:08}_{i}.JPEG")
    time.sleep(2.5)  # younger folders are not taken as settled
    return root


def start(root: Path, logs: str) -> tuple[float, float]:
    """Seconds from the command to the end of its first training step, and its peak memory in bytes."""
    command = [
        *(sys.executable, "-c", PEAK, "-m", "src.train", "data=folder", f"data.root={root}"),
        *("trainer=cpu", "test=false", "trainer.max_steps=1", "data.val_size=0", f"paths.log_dir={logs}"),
        "+callbacks.signal._target_=tests.benchmarks.process.FirstStep",
    ]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == FIRST_STEP:
            break
    seconds = time.perf_counter() - begin
    peak = process.stdout.read().split()[-1]
    assert process.wait() == 0
    return seconds, float(peak)


def start_rows(setting: Setting) -> list[Row]:
    """The command on `setting.files` files, its second start; the imports and the first step are part of it."""
    with tempfile.TemporaryDirectory() as folder:
        root = linked(Path(folder, "images"), setting.files)
        (first, first_peak), (second, peak) = (start(root, f"{folder}/logs") for _ in range(2))
    name = f"{setting.files:,} files: second start to the first step"
    return [
        Row(name, second, "s", at_most=10, detail=f"the first, which lists them, {first:.1f} s"),
        Row("peak memory of it", max(first_peak, peak) / 1e9, "GB", at_most=2),
    ]
