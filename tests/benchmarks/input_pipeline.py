"""Augmented CIFAR-10 (pad 4, crop, flip, normalise; batch 128): this project's input pipeline against others.

Every contestant yields float32 (128, 3, 32, 32) and labels; the others are what people write without this project.
"""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from statistics import median
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from src.data.augment import RandomCrop, RandomHorizontalFlip, Transform
from src.data.cifar import CIFAR10
from src.data.memory import MemoryDataModule
from tests.benchmarks.table import Row, Setting, wait

BATCH = 128
MEAN, STD = list(CIFAR10.own_mean), list(CIFAR10.own_std)
TARGETS = {"PIL, 0 workers": 14.0, "plain vectorised": 1.8}  # times the images/s of that contestant

Batches = Iterator[tuple[Tensor, Tensor]]


def ours(data: MemoryDataModule, device: torch.device) -> Callable[[], Batches]:
    """Of a data module with `store="device"`."""
    set_up(data, device)
    loader = data.train_dataloader()

    def epoch() -> Batches:
        for i, (images, labels) in enumerate(loader):
            yield data.augment(images, labels, batch=i)

    return epoch


def set_up(data: MemoryDataModule, device: torch.device) -> None:
    """Ready to train on the device, without the loop of a Trainer."""
    silent: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    data.trainer = Trainer(accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, **silent)
    data.prepare_data()
    data.setup("fit")


def plain_vectorised(images: Tensor, labels: Tensor, batch: int = BATCH) -> Callable[[], Batches]:
    """The batch by one index, the crop by advanced indexing with a row and a column index for every pixel.

    images: uint8 (N, 3, S, S); labels: int64 (N,).
    """
    size = images.shape[-1]
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)

    def epoch() -> Batches:
        for index in torch.randperm(len(images)).split(batch):
            if len(index) < batch:
                break
            padded = torch.nn.functional.pad(images[index], (4, 4, 4, 4))
            rows = torch.randint(9, (batch, 1)) + torch.arange(size)
            columns = torch.randint(9, (batch, 1)) + torch.arange(size)
            each = torch.arange(batch).view(-1, 1, 1)
            crop = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            crop = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, crop.flip(-1), crop)
            yield crop.float().div(255).sub(mean).div(std), labels[index]

    return epoch


CONVERT = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
NORMALIZE = v2.Compose([*CONVERT, v2.Normalize(MEAN, STD)])


def per_image(root: str, on_tensors: bool, workers: int) -> Callable[[], Batches]:
    """torchvision's data set and transforms in a DataLoader, on PIL images or with v2 on tensors."""
    random = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    steps = [CONVERT[0], *random, CONVERT[1]] if on_tensors else [*random, *CONVERT]
    source = datasets.CIFAR10(root, transform=v2.Compose([*steps, v2.Normalize(MEAN, STD)]))
    loader = DataLoader(source, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)
    return lambda: iter(loader)


def images_per_s(epoch: Callable[[], Batches], batches: int, device: torch.device, warm: int = 3) -> float:
    """On the device, from the `warm`-th batch on, so that starting workers does not count against them."""
    stream = epoch()
    for _ in range(warm):
        next(stream)
    count = 0
    start = time.perf_counter()
    for images, labels in islice(stream, batches):
        images, labels = images.to(device), labels.to(device)
        count += len(images)
    wait(device)
    return count / (time.perf_counter() - start)


def input_rows(setting: Setting) -> list[Row]:
    """How many times the images/s of each contestant ours gives."""
    root, device = setting.root, setting.device
    options: dict[str, Any] = {"num_classes": 10, "image_size": 32, "batch_size": BATCH, "augment": augment()}
    module = CIFAR10(root=root, val_size=0, store="device", **options)
    source = datasets.CIFAR10(root)
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    contestants = {  # and how many batches to time
        "plain vectorised": (plain_vectorised(images, torch.tensor(source.targets)), 100),
        "PIL, 0 workers": (per_image(root, on_tensors=False, workers=0), 40),
        "PIL, 2 workers": (per_image(root, on_tensors=False, workers=2), 60),
        "v2 on tensors, 0 workers": (per_image(root, on_tensors=True, workers=0), 20),
        "v2 on tensors, 2 workers": (per_image(root, on_tensors=True, workers=2), 40),
    }
    everyone = {"ours": (ours(module, device), 300), **contestants}
    rounds = [
        {name: images_per_s(epoch, batches, device) for name, (epoch, batches) in everyone.items()}
        for _ in range(setting.repeats)
    ]
    mine = median(each["ours"] for each in rounds)
    return [
        Row(f"input pipeline: images/s / {name}", median(each["ours"] / each[name] for each in rounds), "x",
            at_least=TARGETS.get(name),
            detail=f"{mine:,.0f} / {median(each[name] for each in rounds):,.0f} images/s")
        for name in contestants
    ]  # fmt: skip


def augment() -> dict[str, Transform]:
    """Fresh transforms of CIFAR-10's usual augmentation."""
    return {"crop": RandomCrop(4), "flip": RandomHorizontalFlip()}
