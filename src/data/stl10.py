"""STL10 (Coates, Lee & Ng 2011): 96x96 px, 5,000 labelled training images in ten folds, 8,000 to test."""

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from src.data.files import OfficialDataModule

SIDE = 96  # pixels
IMAGE_BYTES = 3 * SIDE * SIDE
OFFICIAL_COUNT = {"train": 5000, "test": 8000}
CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


class STL10(OfficialDataModule):
    """The labelled part of STL10; the official folder is stl10_binary, the archive has 2.6 GB.

    Other image sizes than 96 are cut from an image enlarged by the ratio of the classic recipe: 224 from 256.

    Args:
        fold: without `folds`, train on one of the official folds 0..9 (1,000 images each) instead of all 5,000.
        checksum: False accepts images of your own in the official files' format and number. Another number of them
            is accepted anyway, with a warning.
        options: of `OfficialDataModule`.
    """

    source = datasets.STL10
    unless = ", unless they are files of your own: data.checksum=false"
    own_mean = (0.4467, 0.4398, 0.4066)
    own_std = (0.2603, 0.2566, 0.2713)
    official_folds = 10

    def __init__(self, *, checksum: bool = True, **options: Any) -> None:
        if options["image_size"] != SIDE and options.get("resize") is None:
            options["resize"] = round(options["image_size"] * 256 / 224)
        super().__init__(**options)
        self.official_fold = self.fold if self.folds is None else None
        self.checksum = checksum

    def files(self) -> list[tuple[str, str | None]]:
        checks = [*self.source.train_list[:2], *self.source.test_list]  # without the unlabelled 2.7 GB
        folds = [] if self.official_fold is None else [(self.source.folds_list_file, None)]
        return [(name, md5 if self._is_official(name) else None) for name, md5 in checks] + folds

    def fetch(self) -> None:
        super().fetch()
        for split, official in OFFICIAL_COUNT.items():
            images, labels = self.folder / f"{split}_X.bin", (self.folder / f"{split}_y.bin").read_bytes()
            count, rest = divmod(images.stat().st_size, IMAGE_BYTES)
            if rest or not count or count != len(labels) or not set(labels) <= set(range(1, 11)):
                raise ValueError(
                    f"{images} is truncated or altered, or {split}_y.bin is: {count:,} images, {rest:,} bytes more, "
                    f"and {len(labels):,} labels, which must be 1 to 10. Delete both and run again with "
                    f"data.download=true."
                )
            if count != official:
                warnings.warn(
                    f"{self.folder} holds {count:,} {split} images where STL10 has {official:,}: they are not "
                    f"verified, and results do not compare with STL10's.",
                    stacklevel=2,
                )

    def _is_official(self, name: str) -> bool:
        """Whether the file must have the official checksum: it is missing, or as long as the official one."""
        split, kind = name.removesuffix(".bin").split("_")
        official = OFFICIAL_COUNT[split] * (IMAGE_BYTES if kind == "X" else 1)
        path = self.folder / name
        return self.checksum and (not path.is_file() or path.stat().st_size == official)

    def load_train(self) -> tuple[Tensor, Tensor]:
        return self._load("train")

    def load_test(self) -> tuple[Tensor, Tensor]:
        return self._load("test")

    def _load(self, split: str) -> tuple[Tensor, Tensor]:
        # not by torchvision's class: it would hash all the files, the unlabelled 2.7 GB too
        names = self.folder / self.source.class_names_file
        self.classes = names.read_text().split() if names.is_file() else CLASSES
        images: Any = np.fromfile(self.folder / f"{split}_X.bin", np.uint8).reshape(-1, 3, SIDE, SIDE)
        labels = np.fromfile(self.folder / f"{split}_y.bin", np.uint8).astype(np.int64) - 1
        if split == "train" and self.official_fold is not None:
            rows = self._fold_rows(self.official_fold, len(labels))
            images, labels = images[rows], labels[rows]
        # the files hold column after column
        return torch.from_numpy(np.ascontiguousarray(images.swapaxes(2, 3))), torch.from_numpy(labels)

    def _fold_rows(self, fold: int, count: int) -> list[int]:
        path = self.folder / self.source.folds_list_file
        numbers = dict(enumerate(path.read_text().splitlines())).get(fold, "").split()
        if not numbers or not all(number.isdecimal() and int(number) < count for number in numbers):
            raise ValueError(f"{path} is truncated or altered: line {fold + 1} must list images, 0 to {count - 1}.")
        return [int(number) for number in numbers]
