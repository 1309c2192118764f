"""Each batched transform against torchvision's, image by image, on one thread.

Both sides end with a batch of tensors. Theirs starts from PIL images, as most people's data sets give them, or from
uint8 tensors where that is said; ours from a batch of uint8. RandomErasing takes floats: both sides make them.
"""

import time
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import datasets
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from src.data.augment import RandomCrop, RandomErasing, RandomHorizontalFlip, RandomResizedCrop
from src.data.colour import GaussianBlur
from src.data.draw import Draw, Transform
from src.data.geometry import RandomRotation
from src.data.policies import AugMix, AutoAugment, ColorJitter, RandAugment, TrivialAugmentWide
from tests.benchmarks.table import Row, Setting, alternate, wait

BATCH = 128
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}
TO_TENSOR, TO_FLOAT = v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)
CIFAR10 = v2.AutoAugmentPolicy.CIFAR10
OF_32_PX: dict[str, tuple[list[Transform], list[nn.Module], float | None]] = {  # ours, theirs, times as many images/s
    "crop and flip": (
        [RandomCrop(4), RandomHorizontalFlip()],
        [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), TO_TENSOR],
        50,
    ),
    "TrivialAugmentWide": ([TrivialAugmentWide()], [v2.TrivialAugmentWide(), TO_TENSOR], 5),
    "RandAugment": ([RandAugment()], [v2.RandAugment(), TO_TENSOR], 5),
    "AutoAugment": ([AutoAugment("cifar10")], [v2.AutoAugment(CIFAR10), TO_TENSOR], 5),
    "AugMix": ([AugMix()], [v2.AugMix(), TO_TENSOR], None),
    "RandomErasing": ([RandomErasing()], [TO_TENSOR, TO_FLOAT, v2.RandomErasing()], 10),
    "ColorJitter": ([ColorJitter(**JITTER)], [v2.ColorJitter(**JITTER), TO_TENSOR], 5),
    "RandomRotation": ([RandomRotation(15)], [v2.RandomRotation(15), TO_TENSOR], 5),
    "GaussianBlur": ([GaussianBlur(3)], [v2.GaussianBlur(3), TO_TENSOR], None),
}
RESIZED = [(32, 32), (64, 64), (96, 96), (128, 128), (224, 224), (256, 224), (256, 256)]  # px from, px to


def augmentation_rows(setting: Setting) -> list[Row]:
    """How many times the images/s of torchvision's transforms ours give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source = datasets.CIFAR10(setting.root).data[:1024]
    images = torch.from_numpy(source).permute(0, 3, 1, 2).contiguous()
    single = [TF.to_pil_image(image) for image in images[:256]]
    rows = []
    for name, (ours, theirs, target) in OF_32_PX.items():
        name = f"augmentation: {name}, images/s / v2 on PIL"
        rows.append(_row(name, setting, ours, images, theirs, single, target))
    for before, after in RESIZED:
        large = TF.resize(images[: 256 if before > 64 else 1024], [before, before])
        ours, theirs = RandomResizedCrop(after), [v2.RandomResizedCrop(after)]
        name = f"augmentation: RandomResizedCrop {before} to {after} px, images/s / v2 on tensors"
        rows.append(_row(name, setting, [ours], large, theirs, list(large[:256]), 1))
    torch.set_num_threads(threads)
    return rows


def _row(
    name: str,
    setting: Setting,
    ours: list[Transform],
    images: Tensor,
    theirs: list[nn.Module],
    single: list[Any],
    target: float | None,
) -> Row:
    images = images.to(setting.device)
    labels = torch.zeros(BATCH, dtype=torch.int64, device=setting.device)

    def batched() -> float:
        start = time.perf_counter()
        for number, batch in enumerate(images.split(BATCH)):
            draw = Draw(len(batch), batch=number, device=setting.device)
            for transform in ours:
                batch, _ = transform(batch / 255 if transform.after_normalize else batch, labels, draw)
        wait(setting.device)
        return (time.perf_counter() - start) / len(images)

    def one_by_one() -> float:
        start = time.perf_counter()
        for batch in batches:
            torch.stack([transform(image) for image in batch])
        return (time.perf_counter() - start) / len(single)

    transform = v2.Compose(theirs)
    batches = [single[i : i + BATCH] for i in range(0, len(single), BATCH)]
    batched(), one_by_one()
    times, (them, us) = alternate(one_by_one, batched, setting.repeats)
    return Row(name, times, "x", at_least=target, detail=f"{1 / us:,.0f} / {1 / them:,.0f} images/s")
