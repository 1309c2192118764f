"""scikit-learn's handwritten digits: bundled, so it needs no network.

1,797 grey images of 8x8 px in 17 levels (the test part of "Optical Recognition of Handwritten Digits", UCI).
"""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from src.data.datamodule import ImageDataModule, stratified

TEST_IMAGES = 360  # a fifth, always the same, whatever data.split_seed says


class Digits(ImageDataModule):
    """The digits, enlarged to `image_size` and with three equal channels; 1,437 to train on and 360 to test."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.classes = [str(digit) for digit in range(10)]

    def load_train(self) -> tuple[Tensor, Tensor]:
        return self._load(test=False)

    def load_test(self) -> tuple[Tensor, Tensor]:
        return self._load(test=True)

    def _load(self, test: bool) -> tuple[Tensor, Tensor]:
        pixels, targets = load_digits(return_X_y=True)
        labels = torch.from_numpy(targets).long()
        chosen, rest = stratified(labels, TEST_IMAGES, torch.Generator().manual_seed(0))
        rows = chosen if test else rest
        grey = torch.from_numpy(pixels)[rows].float().view(-1, 1, 8, 8) * (255 / 16)
        size = self.resize or self.image_size
        grey = F.interpolate(grey, size=(size, size), mode="bilinear", antialias=True).round().to(torch.uint8)
        return grey.repeat(1, 3, 1, 1), labels[rows]
