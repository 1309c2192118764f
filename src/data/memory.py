"""Images held whole, as one uint8 tensor: splits, checks, and fetching a batch with one index."""

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.base import ImageDataModule


class LazyImages:
    """Images that are read when they are needed: has a length, `open(row)`, which gives Pillow's, and `name(row)`."""

    device = torch.device("cpu")
    remedy = ""  # what to do about one that cannot be read


class ImageSet(Dataset):
    """Images held whole, fetched a batch at a time.

    Args:
        images: uint8 (R, C, H, W), in memory, memory-mapped or on a GPU. Sets may share them without a copy.
        labels: of the images of this set, int64 (N,), or float (N, K) of zeros and ones.
        rows: where each of them lies among `images` (N,).
        with_index: a batch also has its indices.
        channels: of the images of a batch; the one channel of grey images is repeated.
    """

    left_out: Sequence[str] = ()  # the paths of those that cannot be read
    chunks: Tensor | None = None  # (N,) which file each image lies in, where it is read with its neighbours
    epoch: int | None = None  # of the training that its batches are for, which `TrainLoader` sets

    def __init__(self, images: Any, labels: Tensor, rows: Tensor, with_index: bool, channels: int) -> None:
        self.images, self.with_index, self.channels = images, with_index, channels
        self.rows, self.labels = rows.to(images.device), labels.to(images.device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """(images (B, channels, H, W) uint8, labels (B,) or (B, K)), and the indices (B,) if `with_index`.

        -1 is a black image whose labels are -1.
        """
        index = torch.tensor(indices, dtype=torch.int64, device=self.rows.device)
        images, labels = self.images.index_select(0, self.rows[index]), self.labels[index]
        if images.shape[1] != self.channels:
            images = images.repeat(1, self.channels, 1, 1)
        if min(indices, default=0) < 0:
            images[index < 0], labels[index < 0] = 0, -1
        return (images, labels, index) if self.with_index else (images, labels)

    def name(self, index: int) -> str:
        """The path, or the number, of what an image was read from; "" where there is none."""
        return ""


class MemoryDataModule(ImageDataModule):
    """Base of the data sets that fit in memory. A subclass gives `load_train` and `load_test`.

    Args:
        store: "cpu", or "device" to keep the images on the training device.
        folds, fold: split the training images into as many stratified parts, and validate on part `fold`, 0 to
            `folds` - 1, instead of on `val_size` or on validation images of the data set's own.
        options: of `ImageDataModule`.
    """

    skips = False  # images that cannot be read
    official_folds = 0  # how many the data set itself has: what `fold` means where `folds` is None
    test_size = 0.1  # share (float) or number (int) of training images to test on where `has_test` is false

    def __init__(
        self, *, store: str = "cpu", folds: int | None = None, fold: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        number = self.official_folds if folds is None else folds
        if (fold, folds) != (None, None) and fold not in range(number):
            wanted = f"choose 0 to {number - 1}" if number else "it is one of data.folds, which is to be set too"
            raise ValueError(f"data.fold={fold} is out of range; {wanted}.")
        if store == "device" and self.num_workers:
            raise ValueError(f"data.store=device takes no workers; set data.num_workers=0 (it is {self.num_workers}).")
        self.on_device, self.folds, self.fold = store == "device", folds, fold

    # What a subclass gives

    @property
    def has_test(self) -> bool:
        """Whether there are test images of its own; else they are carved from the training images."""
        return True

    def load_train(self) -> tuple[Any, Tensor]:
        """The training images, uint8 (N, 3, H, W) or grey (N, 1, H, W), and their labels. Sets `classes`.

        Labels are int64 (N,), or zeros and ones (N, K) where an image may have several of the K classes, or none.
        """
        raise NotImplementedError

    def load_val(self) -> tuple[Any, Tensor] | None:
        """Validation images of the data set's own; None carves them from the training images."""
        return None

    def load_test(self) -> tuple[Any, Tensor]:
        """The test images and labels, in the same form, if `has_test`. Sets `classes`."""
        raise NotImplementedError

    # Splits

    def load_sets(self, part: str) -> dict[str, Dataset]:
        if part == "test" and self.has_test:
            return {"test": self._set(*self._held("test", self.load_test()))}
        images, labels = self._held("train", self.load_train())
        rows, own_val = torch.arange(len(labels)), self.load_val()
        sets: dict[str, Dataset] = {}
        if not self.has_test:
            test, rows = carve(labels, self.test_size, 0, "test_size")  # the same whatever data.split_seed says
            sets["test"] = self._set(images, labels, test)
        rows = self.limited(labels, rows)
        if self.folds is not None:
            if own_val is not None:
                warnings.warn(f"data.folds={self.folds} leaves out the data set's own validation images.", stacklevel=2)
            fold = fold_of(labels[rows], self.folds, self.split_seed)
            sets["val"], rows = self._set(images, labels, rows[fold == self.fold]), rows[fold != self.fold]
        elif own_val is not None:
            sets["val"] = self._set(*self._held("val", own_val))
        elif self.val_size:
            val, train = carve(labels[rows], self.val_size, self.split_seed, "val_size")
            sets["val"], rows = self._set(images, labels, rows[val]), rows[train]
        return {"train": self._set(images, labels, rows, self.needs_index), **sets}

    def digest(self, split: str) -> str:
        """SHA-256 of the images and labels of a split as they are stored, in order."""
        found, size = hashlib.sha256(), self.size(split)
        for first in range(0, size, 1000):
            for tensor in self.examples(split, range(first, min(first + 1000, size))):
                found.update(tensor.contiguous().numpy().data)
        return found.hexdigest()

    def image_name(self, split: str, position: int) -> str:
        return self._existing(split).name(position)

    def left_out(self, split: str) -> list[str]:
        return sorted(self._existing(split).left_out)

    def _set(self, images: Any, labels: Tensor, rows: Tensor | None = None, with_index: bool = False) -> Dataset:
        rows = self.limited(labels, torch.arange(len(labels)) if rows is None else rows)
        return self._image_set(images, labels[rows], rows, with_index)

    def _image_set(self, images: Any, labels: Tensor, rows: Tensor, with_index: bool) -> Dataset:
        return ImageSet(images, labels, rows, with_index, self.channels)

    def limited(self, labels: Tensor, rows: Tensor) -> Tensor:
        """Those of some rows that `limit` leaves, in order."""
        if self.limit is None or self.limit >= len(rows):
            return rows
        if self.limit < len(self.classes):
            raise ValueError(f"data.limit={self.limit} is less than an image for each of {len(self.classes)} classes.")
        return rows[stratified(labels[rows], self.limit, self.split_seed)[0]]

    def _held(self, part: str, given: Any) -> tuple[Any, Tensor]:
        """The images where `store` wants them, and their labels.

        Raises:
            ValueError: they are not as they must be, in a data set of the user's own.
        """
        where = self._where(part)
        if not isinstance(given, tuple) or len(given) != 2:
            raise ValueError(f"{where} must return (images, labels), not {type(given).__name__}.")
        images, labels = given
        if not isinstance(images, LazyImages):
            check_images(where, images, self.channels)
        labels = checked_labels(where, labels, len(images), self.classes)
        self.multilabel = labels.ndim == 2
        if self.on_device and self.trainer is not None and isinstance(images, Tensor):
            images = images.to(self.trainer.strategy.root_device)
        return images, labels

    def _where(self, part: str) -> str:
        return f"{type(self).__name__}.load_{part}"


def check_images(where: str, images: Any, channels: int) -> None:
    """Raise ValueError, with the remedy, unless `images` are uint8 (N, 3, H, W), or (N, 1, H, W) for grey ones."""
    if not isinstance(images, Tensor):
        raise ValueError(f"{where}: images must be a tensor, not {type(images).__name__}; torch.as_tensor(images).")
    shape, remedy = (*images.shape,), ""
    if images.ndim == 3:
        remedy = "images.unsqueeze(1)"
    elif images.ndim != 4 or shape[1] not in (1, 3):
        remedy = "images.permute(0, 3, 1, 2)"
    elif images.dtype != torch.uint8:
        remedy = "(images * 255).round().byte(), if they are 0 to 1"
    elif not len(images):
        remedy = "the split is empty"
    elif shape[1] > channels:
        remedy = "data.channels=1 is for grey ones: set data.channels=3"
    if remedy:
        wanted = "uint8 (N, 3, H, W), or (N, 1, H, W) for grey ones"
        raise ValueError(f"{where}: images must be {wanted}, not {images.dtype} {shape}; {remedy}.")


def checked_labels(where: str, labels: Any, count: int, classes: Sequence[str]) -> Tensor:
    """The labels, int64 (N,), or as float32 where they are (N, K) of zeros and ones.

    Raises:
        ValueError: they are something else, not `count`, or not those of `classes`; says the remedy.
    """
    if not isinstance(labels, Tensor):
        raise ValueError(f"{where}: labels must be a tensor, not {type(labels).__name__}; torch.as_tensor(labels).")
    if not classes:
        raise ValueError(f"{where} sets no classes; self.classes = [...], their names in the order of the labels.")
    shape, number, remedy = (*labels.shape,), len(classes), ""
    if shape[:1] != (count,):
        remedy = "each image needs its own"
    elif shape == (count, number) and ((labels == 0) | (labels == 1)).all():
        return labels.float()
    elif labels.ndim > 1:
        remedy = "labels.argmax(1) or labels.flatten(), if an image has one class"
    elif labels.dtype != torch.int64:
        remedy = "labels.long()"
    elif labels.min() < 0 or labels.max() >= number:
        from_one = labels.min() == 1 and labels.max() == number
        remedy = f"they are {labels.min()} to {labels.max()}: {'labels - 1' if from_one else 'see self.classes'}"
    if remedy:
        wanted = f"int64 ({count},) of 0 to {number - 1}, or zeros and ones ({count}, {number})"
        raise ValueError(f"{where}: labels must be {wanted}, not {labels.dtype} {shape}; {remedy}.")
    return labels


def carve(labels: Tensor, size: float, seed: int, option: str) -> tuple[Tensor, Tensor]:
    """Draw a share (float) or number (int) of positions, stratified: (drawn, the rest).

    Raises:
        ValueError: none would be drawn, or none left; names the option.
    """
    total = len(labels)
    count = round(size * total) if isinstance(size, float) else size
    if not 0 < count < total:
        raise ValueError(
            f"data.{option}={size} of {total} training images takes none or leaves none to train on; choose a share "
            f"between 0 and 1, or a number from 1 to {total - 1}."
        )
    return stratified(labels, count, seed)


def stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` positions, each class in proportion: (drawn, the rest), both in ascending order.

    Shares that are no whole number are rounded by largest remainder, so the count is exact. Labels (N, K) are not
    stratified.
    """
    labels = labels if labels.ndim == 1 else torch.zeros(len(labels))
    members = labels.argsort(stable=True).split(labels.unique(return_counts=True)[1].tolist())
    shares = torch.tensor([count * len(m) / len(labels) for m in members], dtype=torch.float64)
    quotas = shares.floor().long()
    quotas[torch.argsort(quotas - shares, stable=True)[: count - int(quotas.sum())]] += 1
    drawn, generator = torch.zeros(len(labels), dtype=torch.bool), torch.Generator().manual_seed(seed)
    for m, quota in zip(members, quotas.tolist(), strict=True):
        drawn[m[torch.randperm(len(m), generator=generator)[:quota]]] = True
    return torch.nonzero(drawn).flatten(), torch.nonzero(~drawn).flatten()


def fold_of(labels: Tensor, folds: int, seed: int) -> Tensor:
    """Which of the folds, 0 to `folds` - 1, each position belongs to, int64 (N,): drawn, stratified.

    The folds have the same size, to within one, and so has each class in them. Labels (N, K) are not stratified.

    Raises:
        ValueError: there are fewer positions than folds.
    """
    if folds > len(labels):
        raise ValueError(f"data.folds={folds} is more than the {len(labels)} training images.")
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if labels.ndim == 1:
        drawn = drawn[labels[drawn].argsort(stable=True)]
    return (torch.arange(len(labels)) % folds)[drawn.argsort()]  # dealt class after class
