"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 50,000 training and 10,000 test images of 32x32 px."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision import datasets

from src.data.datamodule import ImageDataModule
from src.data.official import ensure_files


class CIFAR10(ImageDataModule):
    """CIFAR-10, its official split.

    Args:
        root: folder that holds, or will hold, the official folder (cifar-10-batches-py).
        download: fetch the official archive if files are missing.
        mirror: URL of a folder that holds the same archive; the checksum stays the official one.
    """

    source: ClassVar[type[datasets.CIFAR10]] = datasets.CIFAR10
    own_mean = (0.4914, 0.4822, 0.4465)
    own_std = (0.2470, 0.2435, 0.2616)

    def __init__(self, root: str, download: bool = False, mirror: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.root, self.download, self.mirror = Path(root), download, mirror

    def prepare_data(self) -> None:
        meta = self.source.meta["filename"], self.source.meta["md5"]
        files = [*self.source.train_list, *self.source.test_list, meta]
        ensure_files(self.source, [(name, md5) for name, md5 in files], self.root, self.download, self.mirror)

    def load_train(self) -> tuple[Tensor, Tensor]:
        return self._load(train=True)

    def load_test(self) -> tuple[Tensor, Tensor]:
        return self._load(train=False)

    def _load(self, train: bool) -> tuple[Tensor, Tensor]:
        # prepare_data has just hashed the files by name; torchvision would hash all of them again for each split
        verified = type("Verified", (self.source,), {"_check_integrity": lambda _: True})
        data = verified(str(self.root), train=train)
        self.classes = list(data.classes)
        # the files are planar and torchvision only views them as (N, H, W, 3): undoing that copies nothing
        return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)


class CIFAR100(CIFAR10):
    """CIFAR-100 with its 100 fine classes; the official folder is cifar-100-python."""

    source = datasets.CIFAR100
    own_mean = (0.5071, 0.4865, 0.4409)
    own_std = (0.2673, 0.2564, 0.2762)
