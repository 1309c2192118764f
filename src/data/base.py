"""What every data set shares: options, loaders, and the batch's way from uint8 to the network."""

import fcntl
import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as TF

from src.data.augment import PerImage
from src.data.draw import Draw, Transform
from src.data.preprocess import Preprocess, measure_statistics, statistic
from src.data.samplers import EvalSampler, Loader, SameOrder, TrainLoader, TrainSampler


class ImageDataModule(LightningDataModule):
    """Base of the data sets; `MemoryDataModule` is the one for images held whole.

    A subclass gives `load_sets`, and `fetch` if there is something to download or decode. Batches leave the loader as
    uint8 (B, C, H, W) and int64 (B,) and reach the model, on its device, augmented (in training only) and normalised:
    float (B, C, image_size, image_size). Labels may be float (B, K) of zeros and ones, see `multilabel`.

    Args:
        num_classes: K, as the network has it; None counts the data set's `classes`.
        image_size: side in pixels of what the network sees.
        resize: shorter side in pixels before the crop to `image_size`; None is `image_size`, after augmentation.
        batch_size: images per process.
        channels: C: 3, or 1 for grey images.
        val_size: share (float) or number (int) of training images to validate on; 0 trains on all.
        split_seed: chooses the validation images, the folds and the images of `limit`.
        limit: use at most this many training (validation included) and test images, stratified.
        mean, std: C floats each, or one for all channels, "imagenet", "half", or None for the data set's own.
        seed: of the order and the augmentation of the training images.
        balance: an epoch shows every class equally often, its images drawn with replacement.
        root: folder of the data set's files, if it has any.
        augment: name -> transform (a `Transform` or a torchvision v2 transform), in order; None leaves one out.
    """

    own_mean: Sequence[float] | None = None  # measured on the training images where a subclass gives none
    own_std: Sequence[float] | None = None
    on_device = False  # whether a batch is fetched where the training is
    measured = 10_000  # images at most to measure mean and deviation on
    resizes_while_reading = False
    multilabel = False  # from `setup` on: whether labels are float (B, K), where an image may have several classes

    def __init__(
        self,
        *,
        num_classes: int | None,
        image_size: int,
        channels: int = 3,
        resize: int | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        val_size: float = 0.1,
        split_seed: int = 0,
        limit: int | None = None,
        mean: str | Sequence[float] | None = None,
        std: str | Sequence[float] | None = None,
        seed: int = 0,
        balance: bool = False,
        root: str | Path = "",
        augment: Mapping[str, nn.Module | None] | None = None,
    ) -> None:
        super().__init__()
        if resize is not None and resize < image_size:
            raise ValueError(f"data.resize={resize} must be at least data.image_size={image_size}, cut from it.")
        self.num_classes, self.channels, self.balance, self.root = num_classes, channels, balance, Path(root)
        self.image_size, self.resize = image_size, resize
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed
        self.val_size, self.split_seed, self.limit = val_size, split_seed, limit
        self._mean, self._std = mean, std if std is not None or not isinstance(mean, str) else mean
        steps = [t if isinstance(t, Transform) else PerImage(t) for t in (augment or {}).values() if t is not None]
        self.before_normalize = [t for t in steps if not t.after_normalize]
        self.after_normalize = [t for t in steps if t.after_normalize]
        self.needs_index = any(t.needs_index for t in steps)
        self.index: Tensor | None = None  # positions in the split of the batch that was moved last, if `needs_index`
        self.classes, self.eval_split = [], "test"
        self.corrupts: Callable[[Tensor], Tensor] | None = None  # what befalls uint8 images that are evaluated
        self._sets: dict[str, Dataset] = {}

    @property
    def classes(self) -> list[str]:
        """The names of the classes; the same name of several, as two of ImageNet's have, is followed by the number."""
        return self._classes

    @classes.setter
    def classes(self, names: list[str]) -> None:
        count = Counter(names)
        self._classes = [f"{name} ({i})" if count[name] > 1 else name for i, name in enumerate(names)]

    # What a subclass gives

    def fetch(self) -> None:
        """Download or decode what is missing. One process at a time is in here."""

    def load_sets(self, part: str) -> dict[str, Dataset]:
        """The data sets of a part: "train" and, if there is one, "val" for "train"; "test" for "test".

        Sets `classes`. A data set has a length and `__getitems__(indices) -> (images (B, C, H, W) uint8, labels (B,))`,
        where -1 gives a black image labelled -1; that of "train" adds the indices (B,) if `needs_index`, as a transform
        or a callback may, and has all its `labels` (N,), if it is to be balanced.
        """
        raise NotImplementedError

    # Splits

    def prepare_data(self) -> None:
        """`fetch`, by one of a user's processes on a machine at a time: the others wait and then find the files."""
        place = hashlib.sha256(bytes(self.root.resolve())).hexdigest()[:16]
        with open(Path(tempfile.gettempdir(), f"lightning-classics-{os.getuid()}-{place}.lock"), "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, were it by a kill
            self.fetch()

    def normalise_by(self, mean: str | Sequence[float] | None, std: str | Sequence[float] | None) -> None:
        """From `setup` on: use this mean and deviation, such as those of the images that weights were trained on."""
        self.mean = statistic("mean", mean, self.own_mean, self.channels)
        self.std = statistic("std", std, self.own_std, self.channels)
        self.preprocess = Preprocess(self.image_size, self.mean, self.std, self.resize)

    def setup(self, stage: str | None = None) -> None:
        """Load what the stage needs, once: the training images for "fit" and "validate", `eval_split` for "test"."""
        callbacks = getattr(self.trainer, "callbacks", ())
        self.needs_index |= any(getattr(callback, "needs_index", False) for callback in callbacks)
        evaluated = _part(self.eval_split)
        needed = {None: ["train", "test"], "fit": ["train"], "validate": ["train"], "test": [evaluated]}.get(stage, [])
        measures = self.own_mean is None and (self._mean is None or self._std is None)
        for part in ["train", *needed] if measures else needed:
            if part not in self._sets:
                self._sets |= self.load_sets(part)
        _, world = self._rank_and_world()
        if stage in (None, "fit") and self.batch_size * world > self.size("train"):
            raise ValueError(
                f"data.batch_size={self.batch_size}{f' on each of {world} processes' * (world > 1)} is more than the "
                f"{self.size('train')} training images; lower it to {self.size('train') // world} or less."
            )
        if self.num_classes is None:
            self.num_classes = len(self.classes)
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(
                f"data.num_classes={self.num_classes}, but the data set has {len(self.classes)} classes; "
                f"set data.num_classes={len(self.classes)}."
            )
        if self.balance and self.multilabel:
            raise ValueError("data.balance=true needs images of one class each; these have labels (N, K).")
        if measures:
            self.own_mean, self.own_std = measure_statistics(self._sets["train"], self.channels, self.measured)
        if not hasattr(self, "preprocess"):
            self.normalise_by(self._mean, self._std)

    def size(self, split: str) -> int:
        """Number of images in "train", "val" or "test", once they are set up; 0 without validation."""
        if _part(split) not in self._sets:
            raise RuntimeError(f"the {split} images are not loaded: call setup() first.")
        return len(self._sets[split]) if split in self._sets else 0  # type: ignore[arg-type]

    def labels(self, split: str) -> Tensor:
        """Those of all images of a split, int64 (N,) or float (N, K), on the CPU."""
        return self._existing(split).labels.cpu()

    def class_counts(self) -> Tensor:
        """How many of the images to train on have each class, int64 (K,)."""
        labels = self.labels("train")
        return labels.sum(0).long() if labels.ndim > 1 else labels.bincount(minlength=len(self.classes))

    def examples(self, split: str, chosen: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Images of a split as they are stored, uint8 (N, C, H, W), and their labels (N,), on the CPU.

        Args:
            chosen: positions in the split, or how many evenly spaced ones to take (all, if it has fewer).
        """
        data, size = self._existing(split), self.size(split)
        if isinstance(chosen, int):
            chosen = [i * size // min(chosen, size) for i in range(min(chosen, size))]
        images, labels, *_ = data.__getitems__(list(chosen))
        return images.cpu(), labels.cpu()

    def digest(self, split: str) -> str:
        """A checksum by which a change of a split's images or labels is noticed; "" where there is none."""
        return ""

    def digests(self) -> dict[str, str]:
        """Those of the splits that are loaded."""
        return {split: found for split in self._sets if (found := self.digest(split))}

    def image_name(self, split: str, position: int) -> str:
        """The path, or the number, of what an image of a split was read from; "" where there is none."""
        return ""

    def left_out(self, split: str) -> list[str]:
        """The paths of images of a split that cannot be read and have no position in it."""
        return []

    def _existing(self, split: str) -> Any:
        if not self.size(split):
            raise ValueError("there are no validation images: the run trained on all (data.val_size=0).")
        return self._sets[split]

    def _rank_and_world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    # Loaders

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches; the last incomplete one is left out."""
        data, (rank, world) = copy(self._sets["train"]), self._rank_and_world()  # the loader tells it the epoch
        at: dict[str, int] = {"rank": rank, "num_replicas": world, "seed": self.seed}
        fixed = getattr(self.trainer, "overfit_batches", 0) > 0
        sampler = SameOrder(data) if fixed else TrainSampler(data, self._position, self.batch_size, self.balance, **at)
        return self._loader(TrainLoader, data, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        limit = getattr(self.trainer, "limit_val_batches", 1.0)
        return self._eval_loader("val", mixed=isinstance(limit, int) or limit < 1) if self.size("val") else []

    def test_dataloader(self) -> DataLoader:
        """The split that `eval_split` names, in order and never augmented."""
        return self._eval_loader(self.eval_split)

    def _eval_loader(self, split: str, mixed: bool = False) -> DataLoader:
        data, (rank, world) = self._existing(split), self._rank_and_world()
        sampler = EvalSampler(data, rank=rank, num_replicas=world, shuffle=mixed)
        return self._loader(Loader, data, sampler=sampler)

    def _loader(self, kind: type[Loader], data: Dataset, **options: Any) -> Loader:
        loader = kind(
            data,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=tuple,  # the batch as it was fetched
            generator=torch.Generator(),  # else each epoch's iterator draws a seed from the one that dropout uses
            pin_memory=bool(self.trainer and self.trainer.strategy.root_device.type == "cuda") and not self.on_device,
            **options,
        )
        loader.failed = self.on_exception
        return loader

    def _position(self) -> tuple[int, int] | None:
        """(epoch, batches of it already done) while a Trainer trains, else None; both survive a resume."""
        if self.trainer is None or not self.trainer.training:
            return None
        # not the count of epochs that Lightning gives to set_epoch: one too high after a resume under max_steps
        return self.trainer.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    # From the loader to the model

    def on_after_batch_transfer(self, batch: Sequence[Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        if isinstance(batch, Tensor):  # the example input of Lightning's model summary
            return batch
        images, labels, *index = batch
        if position := self._position():
            self.index = index[0] if index else None
            images, labels = self.augment(images, labels, *position, *index)
        else:
            images = self.see(images)
        return self.trainer.precision_plugin.convert_input(images) if self.trainer else images, labels

    def see(self, images: Tensor) -> Tensor:
        """What the network sees of images that are evaluated, uint8 (B, C, H, W).

        Where they are corrupted, larger ones are at the network's size, others at their own.
        """
        preprocess = self.preprocess.to(images.device)
        if self.corrupts is None:
            return preprocess(images)
        if min(images.shape[-2:]) > preprocess.size:
            return preprocess.normalise(self.corrupts(preprocess.cut(images)))
        return preprocess(self.corrupts(images))

    def augment(
        self, images: Tensor, labels: Tensor, epoch: int = 0, batch: int = 0, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Augment and normalise a training batch, uint8 (B, C, H, W), as batch `batch` of epoch `epoch`."""
        rank, world = self._rank_and_world()
        draw = Draw(len(images), self.seed, epoch, batch, rank, world, images.device, index, self.num_classes or -1)
        if self.resize and not self.resizes_while_reading:
            images = TF.resize(images, [self.resize], antialias=True)
        for transform in self.before_normalize:
            images, labels = transform(images, labels, draw)
        images = self.preprocess.to(images.device).after_augmentation(images)
        for transform in self.after_normalize:
            images, labels = transform(images, labels, draw)
        return images, labels


def _part(split: str) -> str:
    """What is loaded together with a split: the validation images come with those to train on."""
    if split not in ("train", "val", "test"):
        raise ValueError(f"the split {split!r} is unknown; choose 'train', 'val' or 'test'.")
    return "test" if split == "test" else "train"
