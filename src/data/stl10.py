"""STL10 (Coates, Lee & Ng 2011): 96x96 px, 5,000 labelled training images in ten folds, 8,000 to test."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from src.data.datamodule import ImageDataModule
from src.data.official import ensure_files

SIDE = 96  # pixels
IMAGE_BYTES = 3 * SIDE * SIDE
OFFICIAL_COUNT = {"train": 5000, "test": 8000}
CLASSES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


class STL10(ImageDataModule):
    """The labelled part of STL10.

    Other image sizes than 96 are cut from an image enlarged by the ratio of the classic recipe: 224 from 256.

    Args:
        root: folder that holds, or will hold, the official folder (stl10_binary).
        fold: train on one of the official folds 0..9 (1,000 images each) instead of all 5,000.
        download: fetch the official archive (2.6 GB) if files are missing.
        mirror: URL of a folder that holds the same archive; the checksum stays the official one.
        checksum: False accepts images of your own in the official files' format and number. Another number of them
            is accepted anyway, with a warning.
    """

    own_mean = (0.4467, 0.4398, 0.4066)
    own_std = (0.2603, 0.2566, 0.2713)

    def __init__(
        self,
        root: str,
        fold: int | None = None,
        download: bool = False,
        mirror: str | None = None,
        checksum: bool = True,
        **options: Any,
    ) -> None:
        if options["image_size"] != SIDE and options.get("resize") is None:
            options["resize"] = round(options["image_size"] * 256 / 224)
        super().__init__(**options)
        if fold is not None and fold not in range(10):
            raise ValueError(f"data.fold={fold} is out of range; choose 0 to 9, or null for all 5,000 images.")
        self.root, self.fold = Path(root), fold
        self.download, self.mirror, self.checksum = download, mirror, checksum
        self.folder = self.root / datasets.STL10.base_folder

    def prepare_data(self) -> None:
        checks = [*datasets.STL10.train_list[:2], *datasets.STL10.test_list]  # without the unlabelled 2.7 GB
        files: list[tuple[str, str | None]] = [(name, md5 if self._is_official(name) else None) for name, md5 in checks]
        if self.fold is not None:
            files.append((datasets.STL10.folds_list_file, None))
        ensure_files(datasets.STL10, files, self.root, self.download, self.mirror)
        for split, official in OFFICIAL_COUNT.items():
            count = self._check_layout(split)
            if count != official:
                warnings.warn(
                    f"{self.folder} holds {count:,} {split} images where STL10 has {official:,}: its checksum was not "
                    f"verified, and results do not compare with STL10's.",
                    stacklevel=2,
                )

    def _is_official(self, name: str) -> bool:
        """Whether the file must have the official checksum: it is missing, or as long as the official one."""
        split, kind = name.removesuffix(".bin").split("_")
        path = self.folder / name
        bytes_each = IMAGE_BYTES if kind == "X" else 1
        return self.checksum and (not path.is_file() or path.stat().st_size == OFFICIAL_COUNT[split] * bytes_each)

    def _check_layout(self, split: str) -> int:
        """The number of images in the split's two files, which must agree."""
        images, labels = self.folder / f"{split}_X.bin", self.folder / f"{split}_y.bin"
        count, rest = divmod(images.stat().st_size, IMAGE_BYTES)
        again = "Delete it and run again with data.download=true."
        if rest or count != labels.stat().st_size:
            raise ValueError(
                f"{images} is truncated or altered: it has {count:,} images of {IMAGE_BYTES:,} bytes, {rest:,} bytes "
                f"more, and {labels.name} has {labels.stat().st_size:,} labels. {again}"
            )
        if count == 0 or not set(labels.read_bytes()) <= set(range(1, 11)):
            raise ValueError(f"{labels} is truncated or altered: its labels must be bytes of 1 to 10. {again}")
        return count

    def load_train(self) -> tuple[Tensor, Tensor]:
        images, labels = self._load("train")
        rows = slice(None) if self.fold is None else self._fold_rows(len(labels))
        return torch.from_numpy(np.ascontiguousarray(images[rows])), torch.from_numpy(labels[rows]).long()

    def load_test(self) -> tuple[Tensor, Tensor]:
        images, labels = self._load("test")
        return torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(labels).long()

    def _load(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        # prepare_data has just verified the files it needs; torchvision would hash all of them, the unlabelled too
        verified = type("Verified", (datasets.STL10,), {"_check_integrity": lambda _: True})
        data = verified(str(self.root), split=split)
        self.classes = list(getattr(data, "classes", CLASSES))
        return data.data, data.labels

    def _fold_rows(self, count: int) -> np.ndarray:
        assert self.fold is not None
        path = self.folder / datasets.STL10.folds_list_file
        lines = path.read_text().splitlines()
        try:
            rows = np.array(lines[self.fold].split(), dtype=np.int64)
        except (IndexError, ValueError) as error:
            raise ValueError(f"{path} is truncated or altered: line {self.fold + 1} is no list of numbers.") from error
        if not len(rows) or rows.min() < 0 or rows.max() >= count:
            raise ValueError(f"{path} is truncated or altered: line {self.fold + 1} must name images 0 to {count - 1}.")
        return rows
