"""Images that are read as they are needed: from files or a Dataset, of any number, at any size."""

import hashlib
import math
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from multiprocessing import active_children
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from src.data.augment import PerImage, RandomResizedCrop
from src.data.decode import UNREADABLE, square
from src.data.draw import Draw, Transform
from src.data.memory import ImageSet, LazyImages, MemoryDataModule

WORKERS = 1024  # at most


class ReadError(ValueError):
    """An image that cannot be read; the message is the same where a worker of a DataLoader raised it."""

    def __str__(self) -> str:
        return super().__str__().rpartition(f"{type(self).__name__}: ")[2].strip()  # without the worker's traceback


class StreamedSet(ImageSet):
    """Images that are read when their batch is fetched.

    While `epoch` is set, `steps` are done with each image as it is read, with draws of its own that depend on the
    seed, the epoch and its index alone: a RandomResizedCrop that comes first cuts from the whole image.

    Args:
        images: a `LazyImages`.
        side: of the squares otherwise, in pixels: shorter side resized, centre cut.
        steps: transforms that keep one shape.
        skip: an image that cannot be read is left out, with a warning: it counts as an index of -1, and a training
            batch is shorter by one.
        others: as `ImageSet` has them.
    """

    def __init__(
        self, images: Any, *others: Any, side: int, seed: int = 0, steps: Sequence[Transform] = (), skip: bool = False
    ) -> None:
        super().__init__(images, *others)
        self.side, self.seed, self.steps, self.skip = side, seed, steps, skip
        self.reading = torch.full((WORKERS, 2), -1).share_memory_()  # what each worker reads: its process id, the row

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        worker = get_worker_info()
        note = self.reading[worker.id].numpy() if worker else np.empty(2, np.int64)
        black = np.zeros((self.channels, self.side, self.side), np.uint8)
        read, given = [], []
        for index in indices:
            note[:] = os.getpid(), self.rows[index]
            pixels = self._read(index) if index >= 0 else None
            if pixels is not None or self.epoch is None:
                read.append(black if pixels is None else pixels)
                given.append(-1 if pixels is None else index)
        note[1] = -1
        images = torch.from_numpy(np.stack(read) if read else black[None][:0])
        positions = torch.tensor(given, dtype=torch.int64)
        labels = self.labels[positions]
        labels[positions < 0] = -1
        return (images, labels, positions) if self.with_index else (images, labels)

    def name(self, index: int) -> str:
        return self.images.name(int(self.rows[index]))

    def _read(self, index: int) -> np.ndarray | None:
        """uint8 (C, S, S); None where it is left out."""
        row, steps, box, side = int(self.rows[index]), [*self.steps], None, self.side
        if self.epoch is None:
            steps = []
        else:
            draw = Draw(1, self.seed, self.epoch, index, index=torch.tensor([index]), kind=2)
        if steps and isinstance(crop := steps[0], RandomResizedCrop):
            steps, side, box = steps[1:], crop.size, partial(random_box, crop, draw.generator)
        try:
            with self.images.open(row) as image:
                pixels = square(image, side, self.channels, box)
        except UNREADABLE as error:
            leave_out(self.images, row, error, self.skip)
            return None
        for step in steps:
            pixels = step(torch.from_numpy(pixels)[None], self.labels[index : index + 1], draw)[0][0].numpy()
        return pixels


def leave_out(images: LazyImages, row: int, error: Exception, skip: bool) -> None:
    """Warns of an image that cannot be read.

    Raises:
        ReadError: it is not to be skipped.
    """
    told = f"{images.name(row)} cannot be read: {error}"  # type: ignore[attr-defined]
    if not skip:
        raise ReadError(f"{told}{images.remedy}") from error
    warnings.warn(f"left out: {told}", stacklevel=3)


def random_box(
    crop: RandomResizedCrop, generator: torch.Generator, height: int, width: int
) -> tuple[int, int, int, int]:
    """Top, left, height and width in pixels, as RandomResizedCrop draws them, without a tensor for each number."""
    share, shape, down, right = torch.rand(4, generator=generator).tolist()
    area = height * width * (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * share)
    ratio = crop.ratio[0] * (crop.ratio[1] / crop.ratio[0]) ** shape
    tall = min(max(round(math.sqrt(area / ratio)), 1), height)
    wide = min(max(round(math.sqrt(area * ratio)), 1), width)
    return int(down * (height - tall + 1)), int(right * (width - wide + 1)), tall, wide


class StreamingDataModule(MemoryDataModule):
    """Base of the data sets whose images are held whole, or read when they are needed.

    A subclass gives `sources` and `load`.

    Args:
        mode: "memory" reads every image once; "stream" reads the images of a batch when it is fetched.
        test_size: share (float) or number (int) of the training images to test on where there are no test images.
        options: of `MemoryDataModule`.
    """

    resizes_while_reading = True

    def __init__(self, *, mode: str = "memory", test_size: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        if mode == "stream" and self.on_device:
            raise ValueError("data.store=device holds all images, and data.mode=stream none; choose one of them.")
        self.mode, self.streams, self.test_size = mode, mode == "stream", test_size

    @cached_property
    def sources(self) -> Mapping[str, Any]:
        """What the images of "train", and of "val" and "test" if they are not to be carved from these, come from."""
        raise NotImplementedError

    def load(self, split: str) -> tuple[Any, Tensor]:
        """The images of one of `sources`, a tensor or a `LazyImages`, and their labels. Sets `classes`."""
        raise NotImplementedError

    @property
    def has_test(self) -> bool:
        return "test" in self.sources

    def load_train(self) -> tuple[Any, Tensor]:
        return self.load("train")

    def load_val(self) -> tuple[Any, Tensor] | None:
        return self.load("val") if "val" in self.sources else None

    def load_test(self) -> tuple[Any, Tensor]:
        return self.load("test")

    @cached_property
    def _steps(self) -> list[Transform]:
        """Those taken out of the augmentation, to be done with each image as it is read.

        They are those up to the last `PerImage`, and a RandomResizedCrop that comes first: it gets the whole image.
        """
        steps = self.before_normalize
        first = steps[:1] if steps and isinstance(steps[0], RandomResizedCrop) else []
        count = max((i for i, step in enumerate(steps, 1) if step in first or isinstance(step, PerImage)), default=0)
        self.before_normalize = steps[count:]
        return steps[:count]

    def digest(self, split: str) -> str:
        """As `MemoryDataModule` has it; of names and labels alone where images are streamed, which are not all read."""
        if not self.streams:
            return super().digest(split)
        found, root = hashlib.sha256(self._existing(split).labels.numpy()), f"{self.root.resolve()}/"
        for position in range(self.size(split)):
            found.update(os.fsencode(self.image_name(split, position).removeprefix(root)) + b"\n")
        return found.hexdigest()

    def _image_set(self, images: Any, labels: Tensor, rows: Tensor, with_index: bool) -> Dataset:
        if not self.streams:
            return super()._image_set(images, labels, rows, with_index)
        self.measured = 256  # reading more takes seconds
        side = self.resize or self.image_size
        given = images, labels, rows, with_index, self.channels
        return StreamedSet(*given, side=side, seed=self.seed, steps=self._steps, skip=self.skips)

    def on_exception(self, exception: BaseException) -> None:
        """Say what a worker read that died."""
        if not self.num_workers or not isinstance(exception, (RuntimeError, ConnectionError, EOFError)):
            return
        with suppress(RuntimeError):  # which torch raises, wherever the process is just now, when a worker has died
            time.sleep(1)
        alive = {child.pid for child in active_children()}
        for data in self._sets.values():
            for pid, row in data.reading.tolist() if isinstance(data, StreamedSet) else ():
                if row >= 0 and pid not in alive:
                    name = data.images.name(row)  # type: ignore[attr-defined]
                    raise ReadError(
                        f"a worker died while it read {name}: it was killed, perhaps for want of memory, or crashed."
                    ) from exception
