"""Images that a map-style torch `Dataset` gives, item by item: read into memory once, or streamed."""

from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from src.data.decode import is_grey, open_image, square
from src.data.memory import LazyImages
from src.data.samplers import worker_options
from src.data.streaming import StreamingDataModule


class SourceDataModule(StreamingDataModule):
    """Base of the data sets that are read item by item. A subclass gives `sources`, torch Datasets.

    Items are (image, label). An image is a PIL image, an image file's bytes, an array (H, W) or (H, W, 3), or a tensor
    (C, H, W); arrays and tensors are uint8 or floats in 0..1. It becomes a square of `resize` (or `image_size`) pixels:
    shorter side resized, centre cut; one of that size stays as it is. A label is an integer, or zeros and ones (K,).
    The classes are called as the training source's `classes`, or else by their numbers. Random transforms belong into
    `augment`: what is read into memory is read once.
    """

    def load(self, split: str) -> tuple[Any, Tensor]:
        where, source = self._where(split), self.sources[split]
        squares = Squares(source, self.resize or self.image_size, self.channels, where)
        if not len(squares):
            raise ValueError(f"{where}: there are no images.")
        squares[0]  # what is wrong with all of them is told here, not by a worker
        if self.streams:
            images, labels = squares, as_labels(where, self.given_labels(source))
        else:
            images, labels = self._read(squares, where)
        self._name_classes(where, getattr(source, "classes", None), labels)
        return images, labels

    def given_labels(self, source: Any) -> list[Any]:
        """The labels of a Dataset: its `targets` or `labels`, if three of its items have the same, else all items'.

        The three are the first, the middle and the last, which are of several classes even where these come in order.
        """
        some = [(index, source[index][1]) for index in (0, len(source) // 2, len(source) - 1)]
        for name in ("targets", "labels") if getattr(source, "target_transform", None) is None else ():
            labels: Any = getattr(source, name, None)
            listed = labels is not None and len(labels) == len(source)
            if listed and all(np.array_equal(label, labels[index]) for index, label in some):
                return list(labels)
        return [source[index][1] for index in track(range(len(source)), f"reading {len(source):,} labels")]

    def _read(self, squares: "Squares", where: str) -> tuple[Any, Tensor]:
        """All images, uint8 (N, 1, S, S) if all are grey, else (N, 3, S, S), and their labels."""
        loader: Any = DataLoader(squares, 64, collate_fn=list, **worker_options(self.num_workers))
        images = np.empty((len(squares), *squares[0][0].shape), np.uint8)
        labels: list[Any] = []
        for batch in track(loader, f"reading {len(squares):,} images"):
            for image, label in batch:
                if len(image) > images.shape[1]:
                    images = images.repeat(3, axis=1)  # the first that is not grey
                images[len(labels)] = image
                labels.append(label)
        return torch.from_numpy(images), as_labels(where, labels)

    def _name_classes(self, where: str, names: Any, labels: Tensor) -> None:
        if names is None and not self.classes:
            names = range(self.num_classes or (labels.shape[1] if labels.ndim > 1 else max(int(labels.max()) + 1, 1)))
        if names is not None:
            before = self.classes
            self.classes = [", ".join(name) if isinstance(name, tuple) else str(name) for name in names]
            if before and before != self.classes:
                raise ValueError(f"{where}: its classes, {self.classes[:5]}, are not those before, {before[:5]}.")

    def _where(self, part: str) -> str:
        return f"{type(self.sources[part]).__name__}, the {part} images"


class MapDataset(SourceDataModule):
    """Any map-style torch `Dataset`s.

    Args:
        source: of the training images.
        val_source, test_source: None carves them from the training images, by `val_size` and `test_size`.
        options: of `SourceDataModule`.
    """

    def __init__(self, *, source: Any, val_source: Any = None, test_source: Any = None, **options: Any) -> None:
        super().__init__(**options)
        given = {"train": source, "val": val_source, "test": test_source}
        self.sources = {split: each for split, each in given.items() if each is not None}
        for split, each in self.sources.items():
            if not (hasattr(each, "__len__") and hasattr(each, "__getitem__")):
                option = "source" if split == "train" else f"{split}_source"
                raise ValueError(f"data.{option} is a {type(each).__name__}; it needs __len__ and __getitem__(index).")


class Squares(LazyImages, Dataset):
    """The items of a Dataset, each image as uint8 (1 or 3, side, side): 1 for a grey one, or where `channels` is 1."""

    def __init__(self, source: Any, side: int, channels: int, where: str) -> None:
        self.source, self.side, self.channels, self.where = source, side, channels, where

    def __len__(self) -> int:
        return len(self.source)

    def item(self, index: int) -> tuple[Image.Image, Any]:
        item = self.source[index]
        if not isinstance(item, tuple | list) or len(item) != 2:
            raise ValueError(f"{self.where}: an item must be (image, label), not {type(item).__name__}.")
        return as_image(self.where, item[0]), item[1]

    def open(self, index: int) -> Image.Image:
        return self.item(index)[0]

    def name(self, index: int) -> str:
        return f"item {index} of {self.where}"

    def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
        image, label = self.item(index)
        return square(image, self.side, 1 if is_grey(image) else self.channels), label


def as_image(where: str, image: Any) -> Image.Image:
    """What a Dataset gives as an image, as PIL's.

    Raises:
        ValueError: it is none of those that `SourceDataModule` takes.
    """
    if isinstance(image, bytes | memoryview):
        try:
            image = open_image(BytesIO(image))
        except UnidentifiedImageError as error:
            raise ValueError(f"{where}: {bytes(image[:8])!r}... is no image file.") from error
    if isinstance(image, Image.Image):
        return image
    pixels = np.asarray(image)
    if isinstance(image, Tensor) and image.ndim == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.dtype.kind == "f" and pixels.size and pixels.min() >= 0 and pixels.max() <= 1:
        pixels = (pixels * 255).round().astype(np.uint8)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(
            f"{where}: an image must be PIL's, an array (H, W) or (H, W, 3), or a tensor (C, H, W), uint8 or floats in "
            f"0..1 (leave Normalize out of its transform), not {type(image).__name__} {pixels.dtype} {pixels.shape}."
        )
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


def as_labels(where: str, labels: list[Any]) -> Tensor:
    """Labels as int64 (N,), or those of other shapes and types as they are.

    Raises:
        ValueError: they are no numbers, or of several shapes.
    """
    values = [np.asarray(label) for label in labels]
    if values[0].dtype.kind not in "biuf" or len({value.shape for value in values}) > 1:
        raise ValueError(f"{where}: labels must be integers, or zeros and ones (K,), not such as {labels[0]!r}.")
    stacked = torch.from_numpy(np.stack(values))
    return stacked if stacked.ndim > 1 or stacked.is_floating_point() else stacked.long()
