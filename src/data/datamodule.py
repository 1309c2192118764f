"""What every data set shares: splits, samplers, loaders, and the batch's way from uint8 to the network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms import v2

from src.data.augment import Draw, PerImage, Preprocess, Transform

STATISTICS = {  # of images in 0..1, per channel
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "half": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
}


class ImageSet(Dataset):
    """Images held whole, fetched a batch at a time.

    Args:
        images: uint8 (N, 3, H, W), in memory, memory-mapped or on a GPU.
        labels: int64 (N,).
        rows: which of them belong to this set, in order; None is all. Sets may share `images` without a copy.
    """

    def __init__(self, images: Tensor, labels: Tensor, rows: Tensor | None = None) -> None:
        self.store = images
        self.rows = None if rows is None else rows.to(images.device)
        self.labels = labels if rows is None else labels[rows]
        self._labels = self.labels.to(images.device)
        self.with_index = False

    @property
    def images(self) -> Tensor:
        """uint8 (N, 3, H, W); a copy where the set shares its storage with another."""
        return self.store if self.rows is None else self.store.index_select(0, self.rows)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels, *_ = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """(images (B, 3, H, W) uint8, labels (B,)), and the indices (B,) if `with_index`; -1 is a black image, -1."""
        index = torch.tensor(indices, device=self.store.device)
        padding = index < 0 if min(indices) < 0 else None
        if padding is not None:
            index = index.clamp(min=0)
        images = self.store.index_select(0, index if self.rows is None else self.rows[index])
        labels = self._labels[index]
        if padding is not None:
            images[padding], labels[padding] = 0, -1
        return (images, labels, index) if self.with_index else (images, labels)


class TrainSampler(DistributedSampler):
    """Shuffled anew each epoch from (seed, epoch), the same order for any number of processes.

    `position()` is asked when iteration begins and gives (epoch, images of it that this rank has already seen); None
    leaves the epoch to `set_epoch`.
    """

    def __init__(
        self, dataset: Dataset, rank: int, world: int, seed: int, position: Callable[[], tuple[int, int] | None]
    ) -> None:
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=True, seed=seed, drop_last=True)
        self.position = position

    def __iter__(self) -> Iterator[int]:
        epoch, seen = self.position() or (self.epoch, 0)
        self.set_epoch(epoch)
        return islice(super().__iter__(), seen, None)


class EvalSampler(DistributedSampler):
    """Every image once, in order; -1 fills up the shorter ranks, so that none waits for another."""

    def __init__(self, dataset: Dataset, rank: int, world: int) -> None:
        super().__init__(dataset, num_replicas=world, rank=rank, shuffle=False)

    def __iter__(self) -> Iterator[int]:
        size = len(self.dataset)  # type: ignore[arg-type]
        return iter([i if i < size else -1 for i in range(self.rank, self.total_size, self.num_replicas)])


class TrainLoader(DataLoader):
    """Goes on in the middle of an epoch.

    A generator, so that sampling and workers start at the first `next()`: by then Lightning has restored its batch
    progress, which is the one record of the position. `state_dict` is there because Lightning takes a loader that
    has it for one that can resume.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def _as_fetched(batch: Any) -> Any:
    return batch


def stratified(labels: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw `count` positions, each class in proportion: (drawn, the rest), both in ascending order.

    Shares that are no whole number are rounded by largest remainder, so the count is exact.
    """
    members = [torch.nonzero(labels == c).flatten() for c in labels.unique()]
    shares = torch.tensor([count * len(m) / len(labels) for m in members], dtype=torch.float64)
    quotas = shares.floor().long()
    quotas[torch.argsort(quotas - shares, stable=True)[: count - int(quotas.sum())]] += 1
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    for m, quota in zip(members, quotas.tolist(), strict=True):
        drawn[m[torch.randperm(len(m), generator=generator)[:quota]]] = True
    return torch.nonzero(drawn).flatten(), torch.nonzero(~drawn).flatten()


class ImageDataModule(LightningDataModule):
    """Base of the data sets. A subclass gives `load_train` and `load_test`, and `prepare_data` if it downloads.

    Batches leave the loader as uint8 (B, 3, H, W) and int64 (B,) and reach the model, on its device, augmented (in
    training only) and normalised: float (B, 3, image_size, image_size).

    Args:
        num_classes: K, as the network has it.
        image_size: side in pixels of what the network sees.
        resize: shorter side in pixels before the crop to `image_size`; None is `image_size`, after augmentation.
        batch_size: images per process.
        val_size: share (float) or number (int) of training images to validate on; 0 trains on all.
        split_seed: chooses the validation images and those of `limit`.
        limit: use at most this many training (validation included) and test images, stratified.
        store: "cpu", or "device" to keep the images on the training device.
        mean, std: three floats each, "imagenet", "half", or None for the data set's own.
        seed: of the order and the augmentation of the training images.
        augment: name -> transform (a `Transform` or a torchvision v2 transform), in order; None leaves one out.
    """

    own_mean: Sequence[float] | None = None  # measured on the training images where a subclass gives none
    own_std: Sequence[float] | None = None
    train_set: ImageSet
    val_set: ImageSet | None
    test_set: ImageSet
    preprocess: Preprocess

    def __init__(
        self,
        *,
        num_classes: int,
        image_size: int,
        resize: int | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        val_size: float = 0.1,
        split_seed: int = 0,
        limit: int | None = None,
        store: str = "cpu",
        mean: str | Sequence[float] | None = None,
        std: str | Sequence[float] | None = None,
        seed: int = 0,
        augment: Mapping[str, nn.Module | None] | None = None,
    ) -> None:
        super().__init__()
        if store not in ("cpu", "device"):
            raise ValueError(f"data.store={store!r} is unknown; choose 'cpu' or 'device'.")
        if store == "device" and num_workers:
            raise ValueError(
                f"data.store=device fetches on the device itself and takes no workers; set data.num_workers=0 "
                f"(it is {num_workers})."
            )
        if resize is not None and resize < image_size:
            raise ValueError(
                f"data.resize={resize} must be at least data.image_size={image_size}, which is cut from it."
            )
        if batch_size < 1:
            raise ValueError(f"data.batch_size={batch_size} must be at least 1.")
        if limit is not None and limit < num_classes:
            raise ValueError(f"data.limit={limit} is fewer than one image for each of the {num_classes} classes.")
        self.num_classes, self.image_size, self.resize = num_classes, image_size, resize
        self.batch_size, self.num_workers = batch_size, num_workers
        self.val_size, self.split_seed, self.limit, self.store, self.seed = val_size, split_seed, limit, store, seed
        self._mean, self._std = mean, std if std is not None or not isinstance(mean, str) else mean
        steps = [t if isinstance(t, Transform) else PerImage(t) for t in (augment or {}).values() if t is not None]
        self.transforms = nn.ModuleList(sorted(steps, key=lambda t: bool(t.after_normalize)))
        self.classes: list[str] = []
        self.eval_split = "test"

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

    def setup(self, stage: str | None = None) -> None:
        """Load what the stage needs, once: the training images for "fit" and "validate", `eval_split` for "test"."""
        evaluates = {"train": "train", "val": "train", "test": "test"}
        if self.eval_split not in evaluates:
            raise ValueError(f"the split {self.eval_split!r} is unknown; choose 'train', 'val' or 'test'.")
        needed = {
            None: {"train", "test"},
            "fit": {"train"},
            "validate": {"train"},
            "test": {evaluates[self.eval_split]},
        }
        load = needed.get(stage, set())
        if ("train" in load or self._measures()) and not hasattr(self, "train_set"):
            self._setup_train()
        if stage in (None, "fit"):
            self._check_batch_size()
        if "test" in load and not hasattr(self, "test_set"):
            images, labels = self.load_test()
            self.test_set = ImageSet(self._stored(images), labels, self._limited(labels))
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(
                f"data.num_classes={self.num_classes}, but the data set has {len(self.classes)} classes; "
                f"set data.num_classes={len(self.classes)}."
            )
        if not hasattr(self, "preprocess"):
            self.mean = self._statistic("mean", self._mean, self.own_mean)
            self.std = self._statistic("std", self._std, self.own_std)
            self.preprocess = Preprocess(self.image_size, self.mean, self.std, self.resize)

    def _setup_train(self) -> None:
        images, labels = self.load_train()
        own_val = self.load_val()
        train, val = self._limited(labels), None
        if own_val is None:
            train, val = self._carve(labels, train)
        if self._measures():
            self.own_mean, self.own_std = statistics(images, train)
        images = self._stored(images)
        self.train_set = ImageSet(images, labels, train)
        self.train_set.with_index = any(t.needs_index for t in self.transforms)
        self.val_set = None if val is None else ImageSet(images, labels, val)
        if own_val is not None:
            self.val_set = ImageSet(self._stored(own_val[0]), own_val[1], self._limited(own_val[1]))

    def _measures(self) -> bool:
        """Whether the data set's own statistics are asked for and not known."""
        return self.own_mean is None and (self._mean is None or self._std is None)

    def _check_batch_size(self) -> None:
        _, world = self._rank_and_world()
        if self.batch_size * world > len(self.train_set):
            processes = f" on each of {world} processes" if world > 1 else ""
            raise ValueError(
                f"data.batch_size={self.batch_size}{processes} is more than the {len(self.train_set)} training images; "
                f"lower it to {len(self.train_set) // world} or less."
            )

    def _limited(self, labels: Tensor) -> Tensor | None:
        """Rows that `limit` keeps; None is all."""
        if self.limit is None or self.limit >= len(labels):
            return None
        return stratified(labels, self.limit, torch.Generator().manual_seed(self.split_seed))[0]

    def _carve(self, labels: Tensor, rows: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Split the rows (None is all) into those to train on and those to validate on (None is none)."""
        if self.val_size == 0:
            return rows, None
        rows = torch.arange(len(labels)) if rows is None else rows
        total = len(rows)
        count = round(self.val_size * total) if isinstance(self.val_size, float) else self.val_size
        if not 0 < count < total:
            raise ValueError(
                f"data.val_size={self.val_size} of {total} training images leaves {min(max(count, 0), total)} to "
                f"validate on and {min(max(total - count, 0), total)} to train on; choose a share between 0 and 1, a "
                f"number from 1 to {total - 1}, or 0 to train on all of them."
            )
        val, train = stratified(labels[rows], count, torch.Generator().manual_seed(self.split_seed))
        return rows[train], rows[val]

    def _stored(self, images: Tensor) -> Tensor:
        if self.store == "cpu" or self.trainer is None:
            return images
        return images.to(self.trainer.strategy.root_device)

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    @staticmethod
    def _statistic(name: str, given: str | Sequence[float] | None, own: Sequence[float] | None) -> list[float]:
        if isinstance(given, str):
            if given not in STATISTICS:
                raise ValueError(
                    f"data.{name}={given!r} is unknown; choose one of {', '.join(STATISTICS)}, three numbers, or null "
                    f"for the data set's own."
                )
            given = STATISTICS[given][name]
        values = [float(x) for x in (own if given is None else given)]  # type: ignore[union-attr]
        if len(values) != 3 or (name == "std" and min(values) <= 0):
            positive = " above 0" if name == "std" else ""
            raise ValueError(f"data.{name}={values} must be three numbers{positive}, one for each channel.")
        return values

    # Loaders

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches; the last incomplete one is left out."""
        rank, world = self._rank_and_world()

        def position() -> tuple[int, int] | None:
            if self.trainer is None or not self.trainer.training:
                return None
            epoch, batches = self._position()
            return epoch, batches * self.batch_size

        sampler = TrainSampler(self.train_set, rank, world, self.seed, position)
        return TrainLoader(self.train_set, sampler=sampler, drop_last=True, **self._loader_options())

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        return [] if self.val_set is None else self._eval_loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        """The split that `eval_split` names, in order and never augmented."""
        chosen = {"train": "train_set", "val": "val_set", "test": "test_set"}[self.eval_split]
        if getattr(self, chosen) is None:
            raise ValueError("there are no validation images to evaluate: the run trained on all (data.val_size=0).")
        return self._eval_loader(getattr(self, chosen))

    def _eval_loader(self, images: ImageSet) -> DataLoader:
        rank, world = self._rank_and_world()
        return DataLoader(images, sampler=EvalSampler(images, rank, world), **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "batch_size": self.batch_size,
            "num_workers": self.num_workers,
            "collate_fn": _as_fetched,
            "generator": torch.Generator(),  # else each epoch's iterator draws a seed from the one that dropout uses
            "pin_memory": on_gpu and self.store == "cpu",
        }

    def _position(self) -> tuple[int, int]:
        """(epoch, batches of it already done) of the training; both survive a resume."""
        assert self.trainer is not None
        # not the count of epochs that Lightning gives to set_epoch: one too high after a resume under max_steps
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    # From the loader to the model

    def on_after_batch_transfer(self, batch: Sequence[Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Tensor):  # the example input of Lightning's model summary
            return batch
        images, labels, *index = batch
        if self.trainer is None or not self.trainer.training:
            images = self._preprocess_on(images.device)(images)
        else:
            epoch, done = self._position()
            images, labels = self.augment(images, labels, epoch, done, index[0] if index else None)
        if self.trainer is not None:
            images = self.trainer.precision_plugin.convert_input(images)
        return images, labels

    def augment(
        self, images: Tensor, labels: Tensor, epoch: int = 0, batch: int = 0, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augment and normalise a training batch, uint8 (B, 3, H, W), as batch `batch` of epoch `epoch`."""
        rank, world = self._rank_and_world()
        draw = Draw(
            len(images),
            seed=self.seed,
            epoch=epoch,
            batch=batch,
            rank=rank,
            world=world,
            device=images.device,
            index=index,
            num_classes=self.num_classes,
        )
        preprocess = self._preprocess_on(images.device)
        if self.resize and min(images.shape[-2:]) != self.resize:
            images = v2.functional.resize(images, [self.resize], antialias=True)
        normalized = False
        for transform in self.transforms:
            if transform.after_normalize and not normalized:
                images, normalized = preprocess(images), True
            images, labels = transform(images, labels, draw)
        return images if normalized else preprocess(images), labels

    def _preprocess_on(self, device: torch.device) -> Preprocess:
        if self.preprocess.scale.device != device:
            self.preprocess.to(device)
        return self.preprocess


def statistics(images: Tensor, rows: Tensor | None = None, most: int = 10_000) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel of images in 0..1, from at most `most` evenly spaced images."""
    rows = torch.arange(len(images)) if rows is None else rows
    rows = rows[:: math.ceil(len(rows) / most)]
    counts = torch.zeros(3, 256, dtype=torch.float64)
    for part in rows.split(256):
        for channel, values in enumerate(images.index_select(0, part).transpose(0, 1)):
            counts[channel] += torch.bincount(values.flatten(), minlength=256)
    level = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True)
    mean = share @ level
    variance = share @ level.square() - mean.square()
    return mean.tolist(), variance.clamp(min=1 / 255**2).sqrt().tolist()  # a channel may never vary
