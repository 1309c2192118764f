"""How input and training grow with the batch, the image and the data set, on images made up for it."""

from statistics import median
from typing import Any

import torch

from src.data.memory import MemoryDataModule
from tests.benchmarks.input_pipeline import augment, images_per_s, ours, plain_vectorised
from tests.benchmarks.table import Row, Setting
from tests.benchmarks.training import FULL_EPOCH, beside_hand_written

USUAL = {"batch": 128, "size": 32, "images": 20_000}
AXES = {"batch": (8, 32, 512), "size": (64, 96), "images": (2_000, 100_000)}
INPUT_IMAGES, TRAINED_IMAGES = 20_000, 4_000  # that one timing takes, at most


class Noise(MemoryDataModule):
    """`images` random images of the side that the network sees."""

    def __init__(self, images: int, **options: Any) -> None:
        super().__init__(**options)
        self.count = images

    def load_train(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.classes = [str(number) for number in range(self.num_classes)]
        shape = (self.count, 3, self.image_size, self.image_size)
        return torch.randint(256, shape, dtype=torch.uint8), torch.arange(self.count) % self.num_classes


def growth_rows(setting: Setting) -> list[Row]:
    """Along each axis: the input by a plain vectorised one, training TinyVGG by a hand-written loop."""
    points = [USUAL] + [{**USUAL, axis: value} for axis, values in AXES.items() for value in values]
    return [row for point in points for row in _rows(setting, **point)]


def _rows(setting: Setting, batch: int, size: int, images: int) -> list[Row]:
    name = f"batch {batch}, {size} px, {images:,} images"
    options: Any = {"num_classes": 10, "image_size": size, "batch_size": batch, "val_size": 0, "store": "device"}
    module = Noise(images, **options, augment=augment())
    mine = ours(module, setting.device)
    plain = plain_vectorised(*module.examples("train", images), batch)
    batches = min(INPUT_IMAGES, images - 3 * batch) * 32**2 // size**2 // batch
    pairs = [
        (images_per_s(mine, batches, setting.device), images_per_s(plain, batches, setting.device))
        for _ in range(setting.repeats)
    ]

    data = ["data=digits", "data._target_=tests.benchmarks.growth.Noise", f"+data.images={images}"]
    overrides = [*data, f"data.batch_size={batch}", f"data.image_size={size}"]
    steps = max(3, min(TRAINED_IMAGES, images) * 32**2 // size**2 // batch)
    ratio, seconds = beside_hand_written(setting, steps, 2, *overrides)
    rate = [FULL_EPOCH * batch / each for each in seconds]
    return [
        Row(f"input, {name}: images/s / plain vectorised", median(a / b for a, b in pairs), "x",
            detail=" / ".join(f"{median(pair[i] for pair in pairs):,.0f}" for i in (0, 1)) + " images/s"),
        Row(f"tinyvgg, {name}: train(cfg) / hand-written loop", ratio, "x",
            detail=f"{rate[0]:,.0f} / {rate[1]:,.0f} images/s"),
    ]  # fmt: skip
