"""Images held whole, as one uint8 tensor: splits, statistics, and fetching a batch with one index."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.base import ImageDataModule


class ImageSet(Dataset):
    """Images held whole, fetched a batch at a time.

    Args:
        images: uint8 (N, 3, H, W), in memory, memory-mapped or on a GPU.
        labels: int64 (N,).
        rows: which of them belong to this set, in order. Sets may share `images` without a copy.
        with_index: a batch also has its indices.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor, with_index: bool = False) -> None:
        self.images, self.with_index = images, with_index
        self.rows, self.labels = rows.to(images.device), labels[rows].to(images.device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """(images (B, 3, H, W) uint8, labels (B,)), and the indices (B,) if `with_index`; -1 is a black image, -1."""
        index = torch.tensor(indices, dtype=torch.int64, device=self.images.device)
        images, labels = self.images.index_select(0, self.rows[index]), self.labels[index]
        if min(indices, default=0) < 0:
            images[index < 0], labels[index < 0] = 0, -1
        return (images, labels, index) if self.with_index else (images, labels)


class MemoryDataModule(ImageDataModule):
    """Base of the data sets that fit in memory. A subclass gives `load_train` and `load_test`.

    Args:
        store: "cpu", or "device" to keep the images on the training device.
        options: of `ImageDataModule`.
    """

    def __init__(self, *, store: str = "cpu", **options: Any) -> None:
        super().__init__(**options)
        if store not in ("cpu", "device"):
            raise ValueError(f"data.store={store!r} is unknown; choose 'cpu' or 'device'.")
        if store == "device" and self.num_workers:
            raise ValueError(f"data.store=device takes no workers; set data.num_workers=0 (it is {self.num_workers}).")
        self.on_device = store == "device"

    # What a subclass gives

    def load_train(self) -> tuple[Tensor, Tensor]:
        """The training images, uint8 (N, 3, H, W), and labels, int64 (N,). Sets `classes`."""
        raise NotImplementedError

    def load_val(self) -> tuple[Tensor, Tensor] | None:
        """Validation images of the data set's own; None carves them from the training images."""
        return None

    def load_test(self) -> tuple[Tensor, Tensor]:
        """The test images and labels, in the same form. Sets `classes`."""
        raise NotImplementedError

    # Splits

    def load_sets(self, part: str) -> dict[str, Dataset]:
        images, labels, rows = self._held(part, *(self.load_train() if part == "train" else self.load_test()))
        if part == "test":
            return {"test": ImageSet(images, labels, rows)}
        sets, own_val = {}, self.load_val()
        if own_val is not None:
            sets["val"] = ImageSet(*self._held("val", *own_val))
        elif self.val_size:
            val, train = carve(labels[rows], self.val_size, self.split_seed, "val_size")
            sets["val"], rows = ImageSet(images, labels, rows[val]), rows[train]
        return {"train": ImageSet(images, labels, rows, self.needs_index), **sets}

    def _held(self, part: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The images where `store` wants them, their labels, and the rows that `limit` keeps.

        Raises:
            ValueError: images or labels are not as they must be, in a data set of the user's own.
        """
        name, last = f"{type(self).__name__}.load_{part}", (len(self.classes) or self.num_classes) - 1
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"{name}: images must be uint8 (N, 3, H, W), not {images.dtype} {(*images.shape,)}.")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"{name}: labels must be int64 ({len(images)},), not {labels.dtype} {(*labels.shape,)}.")
        if labels.min() < 0 or labels.max() > last:
            raise ValueError(f"{name}: labels must be 0 to {last}, not {labels.min()} to {labels.max()}.")
        if self.on_device and self.trainer is not None:
            images = images.to(self.trainer.strategy.root_device)
        return images, labels, stratified(labels, min(self.limit or len(labels), len(labels)), self.split_seed)[0]


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

    Shares that are no whole number are rounded by largest remainder, so the count is exact.
    """
    members = [torch.nonzero(labels == c).flatten() for c in labels.unique()]
    shares = torch.tensor([count * len(m) / len(labels) for m in members], dtype=torch.float64)
    quotas = shares.floor().long()
    quotas[torch.argsort(quotas - shares, stable=True)[: count - int(quotas.sum())]] += 1
    drawn, generator = torch.zeros(len(labels), dtype=torch.bool), torch.Generator().manual_seed(seed)
    for m, quota in zip(members, quotas.tolist(), strict=True):
        drawn[m[torch.randperm(len(m), generator=generator)[:quota]]] = True
    return torch.nonzero(drawn).flatten(), torch.nonzero(~drawn).flatten()
