"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 px."""

import pickle
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from src.data.files import OfficialDataModule


class CIFAR10(OfficialDataModule):
    """CIFAR-10, its official split; the official folder is cifar-10-batches-py."""

    source = datasets.CIFAR10
    own_mean = (0.4914, 0.4822, 0.4465)
    own_std = (0.2470, 0.2435, 0.2616)

    def files(self) -> list[tuple[str, str | None]]:
        meta = self.source.meta["filename"], self.source.meta["md5"]
        return [*map(tuple, self.source.train_list + self.source.test_list), meta]

    def load_train(self) -> tuple[Tensor, Tensor]:
        return self._load(self.source.train_list)

    def load_test(self) -> tuple[Tensor, Tensor]:
        return self._load(self.source.test_list)

    def _load(self, files: list[list[str]]) -> tuple[Tensor, Tensor]:
        # not by torchvision's class: it would hash all the files again, and `fetch` has just done it
        self.classes = list(self._read(self.source.meta["filename"])[self.source.meta["key"]])
        parts = [self._read(name) for name, _ in files]
        pixels = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
        labels = [label for part in parts for label in part.get("labels") or part["fine_labels"]]
        return torch.from_numpy(pixels), torch.tensor(labels)

    def _read(self, name: str) -> dict[str, Any]:
        return pickle.loads((self.folder / name).read_bytes(), encoding="latin1")


class CIFAR100(CIFAR10):
    """CIFAR-100 with its 100 fine classes; the official folder is cifar-100-python."""

    source = datasets.CIFAR100
    own_mean = (0.5071, 0.4865, 0.4409)
    own_std = (0.2673, 0.2564, 0.2762)
