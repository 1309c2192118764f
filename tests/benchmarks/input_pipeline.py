"""Augmented CIFAR-10 (pad 4, crop, flip, normalise; batch 128): this project's input pipeline against others.

    python -m tests.benchmarks.input_pipeline ../shared/datasets

Every contestant yields float32 (128, 3, 32, 32) and labels; the others are what people write without this project.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from src.data.augment import RandomCrop, RandomHorizontalFlip
from src.data.cifar import CIFAR10

BATCH = 128
MEAN, STD = list(CIFAR10.own_mean), list(CIFAR10.own_std)
TARGETS = {"PIL, 0 workers": 14.0, "plain vectorised": 1.8}  # times the images/s of that contestant

Batches = Iterator[tuple[Tensor, Tensor]]


def ours(root: str) -> Callable[[], Batches]:
    augment = {"crop": RandomCrop(4), "flip": RandomHorizontalFlip()}
    data = CIFAR10(root=root, num_classes=10, image_size=32, batch_size=BATCH, val_size=0, augment=augment)
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()

    def epoch() -> Batches:
        for i, (images, labels) in enumerate(loader):
            yield data.augment(images, labels, batch=i)

    return epoch


def plain_vectorised(root: str) -> Callable[[], Batches]:
    """The batch by one index, the crop by advanced indexing with a row and a column index for every pixel."""
    source = datasets.CIFAR10(root)
    images, labels = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(source.targets)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)

    def epoch() -> Batches:
        for index in torch.randperm(len(images)).split(BATCH)[:-1]:
            padded = torch.nn.functional.pad(images[index], (4, 4, 4, 4))
            rows = torch.randint(9, (BATCH, 1)) + torch.arange(32)
            columns = torch.randint(9, (BATCH, 1)) + torch.arange(32)
            each = torch.arange(BATCH).view(-1, 1, 1)
            crop = padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
            crop = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, crop.flip(-1), crop)
            yield crop.float().div(255).sub(mean).div(std), labels[index]

    return epoch


def per_image(root: str, on_tensors: bool, workers: int) -> Callable[[], Batches]:
    """torchvision's data set and transforms in a DataLoader, on PIL images or with v2 on tensors."""
    convert = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    random = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    steps = [convert[0], *random, convert[1]] if on_tensors else [*random, *convert]
    source = datasets.CIFAR10(root, transform=v2.Compose([*steps, v2.Normalize(MEAN, STD)]))
    loader = DataLoader(source, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=workers)
    return lambda: iter(loader)


def images_per_s(epoch: Callable[[], Batches], batches: int, warm: int = 3) -> float:
    """From the `warm`-th batch on, so that starting workers does not count against them."""
    stream = epoch()
    for _ in range(warm):
        next(stream)
    start = time.perf_counter()
    for _ in range(batches):
        next(stream)
    return batches * BATCH / (time.perf_counter() - start)


def measure(root: str, repeats: int = 5) -> dict[str, dict[str, float]]:
    """Per contestant its images/s and how many times as many ours gives: medians of `repeats` alternating rounds."""
    contestants = {  # and how many batches to time
        "ours": (ours(root), 300),
        "plain vectorised": (plain_vectorised(root), 100),
        "PIL, 0 workers": (per_image(root, on_tensors=False, workers=0), 40),
        "PIL, 2 workers": (per_image(root, on_tensors=False, workers=2), 60),
        "v2 on tensors, 0 workers": (per_image(root, on_tensors=True, workers=0), 20),
        "v2 on tensors, 2 workers": (per_image(root, on_tensors=True, workers=2), 40),
    }
    rounds = [{name: images_per_s(*contestant) for name, contestant in contestants.items()} for _ in range(repeats)]
    return {
        name: {
            "images_per_s": median(r[name] for r in rounds),
            "ours_is_times": median(r["ours"] / r[name] for r in rounds),
        }
        for name in contestants
    }


def main(root: str) -> None:
    for name, result in measure(root).items():
        target = f"   target {TARGETS[name]:g}" if name in TARGETS else ""
        print(f"{name:26s}{result['images_per_s']:12,.0f} images/s   ours {result['ours_is_times']:6.1f} x{target}")


if __name__ == "__main__":
    main(sys.argv[1])
