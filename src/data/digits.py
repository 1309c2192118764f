"""scikit-learn's handwritten digits: bundled, so it needs no network.

1,797 grey images of 8x8 px in 17 levels (the test part of "Optical Recognition of Handwritten Digits", UCI).
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from src.data.memory import MemoryDataModule, stratified


class Digits(MemoryDataModule):
    """The digits, enlarged to `image_size`; 1,437 to train on and 360 to test."""

    def load_train(self) -> tuple[Tensor, Tensor]:
        return self._load(test=False)

    def load_test(self) -> tuple[Tensor, Tensor]:
        return self._load(test=True)

    def _load(self, test: bool) -> tuple[Tensor, Tensor]:
        self.classes = list("0123456789")
        pixels, targets = load_digits(return_X_y=True)
        labels = torch.from_numpy(targets).long()
        chosen, rest = stratified(labels, 360, seed=0)  # a fifth, always the same, whatever data.split_seed says
        rows = chosen if test else rest
        grey = torch.from_numpy(pixels)[rows].float().view(-1, 1, 8, 8) * (255 / 16)
        grey = F.interpolate(grey, self.resize or self.image_size, mode="bilinear", antialias=True).round().byte()
        return grey, labels[rows]
