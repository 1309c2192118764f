"""A folder of your own images, one subfolder per class; ImageNet is one."""

import hashlib
import logging
import os
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.data.cache import DecodedCache
from src.data.listing import SPLITS, Files, Listing, open_listing
from src.data.memory import ImageSet
from src.data.preprocess import STATISTICS
from src.data.streaming import StreamingDataModule

log = logging.getLogger(__name__)
MEMORY = 4e9  # bytes, decoded, that mode "auto" holds at most: a fixed number, so that a resumed run decides alike


class DecodedSet(ImageSet):
    """Images of files, decoded.

    Attributes:
        files, file_rows: what each was decoded from.
    """

    files: Files
    file_rows: Tensor

    def name(self, index: int) -> str:
        return self.files.name(int(self.file_rows[index]))


class ImageFolder(StreamingDataModule):
    """Class folders under `root`: train/, optional val/ and test/, or the class folders alone.

    A missing test/ is carved from the training images, stratified, always the same; a missing val/ by `val_size`.
    In memory the images are squares, their shorter side at `resize` (or `image_size`) and the ends of the longer side
    cut off, and augmentation works on these. Streamed, a RandomResizedCrop that comes first cuts from the whole image.

    Args:
        cache_dir: where the listing is kept and, for mode "memory", the decoded images: C * side^2 bytes each.
        mode: "memory", "stream", or "auto": in memory if the decoded images take no more than 4 GB.
        broken: "fail" at images that cannot be read, or "skip" them; both name them.
        num_workers: None is one a core of the machine, shared by its processes, for "stream", and none for "memory".
        options: of `StreamingDataModule`.
    """

    places: Mapping[str, str] = SPLITS

    def __init__(self, *, cache_dir: str, broken: str = "fail", num_workers: int | None = None, **options: Any) -> None:
        super().__init__(num_workers=num_workers, **{"mode": "auto", **options})
        self.cache_dir, self.skips, self.side = Path(cache_dir), broken == "skip", self.resize or self.image_size

    def fetch(self) -> None:
        """List the images, and decode those to be held in memory that the cache lacks."""
        if self.listing and not self.streams and not self._sets:
            for part in ("train", "test"):
                self.load_sets(part)

    @cached_property
    def sources(self) -> dict[str, Files]:
        return self.listing.splits

    def load(self, split: str) -> tuple[Files, Tensor]:
        self.classes = self.class_names()
        return self.sources[split], self.sources[split].labels

    def class_names(self) -> list[str]:
        """Of the class folders in order."""
        return self.listing.classes

    @cached_property
    def listing(self) -> Listing:
        """Opened once; that decides whether the images are streamed."""
        listing = open_listing(self.root, self._kept, self.places)
        used = sum(min(len(files), self.limit or len(files)) for files in listing.splits.values())
        size = used * self.channels * self.side**2
        if self.mode == "auto":
            self.streams = size > MEMORY and not self.on_device
        processes = self.trainer.num_devices if self.trainer else 1
        if self.num_workers is None:
            self.num_workers = max((os.cpu_count() or 1) // processes, 1) if self.streams else 0
        if self.trainer is None or self.trainer.is_global_zero:
            how = f"streamed by {self.num_workers} workers" if self.streams else "held in memory"
            log.info("%s: %s images, %.2g GB decoded, are %s", self.root, f"{used:,}", size / 1e9, how)
        return listing

    @property
    def _kept(self) -> Path:
        """How the names of the files in the cache begin."""
        root = self.root.resolve()
        place = hashlib.sha256(f"{root}{dict(self.places)}".encode(errors="surrogateescape")).hexdigest()[:8]
        return self.cache_dir / f"{root.name}-{place}"

    def _image_set(self, images: Any, labels: Tensor, rows: Tensor, with_index: bool) -> Dataset:
        """Of the files, those that can be read, decoded."""
        if self.streams:
            return super()._image_set(images, labels, rows, with_index)
        kind = "px" if self.channels == 3 else "grey"
        cache = DecodedCache(Path(f"{self._kept}-{self.side}{kind}"), self.side, self.channels)
        found, broken = cache.rows([images.name(row) for row in rows.tolist()])
        readable = found >= 0
        if broken:
            some = "; ".join(f"{file} ({reason})" for file, reason in sorted(broken.items())[:5])
            more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
            told = f"{len(broken)} of {len(rows)} images cannot be read: {some}{more}."
            if not self.skips or not readable.any():
                raise ValueError(f"{told} Repair or remove them, or leave them out by data.broken=skip.")
            warnings.warn(f"left out: {told}", stacklevel=2)
        decoded, place = cache.images(), found[readable]
        if self.on_device and self.trainer is not None:
            decoded, place = decoded[place].to(self.trainer.strategy.root_device), torch.arange(len(place))
        data = DecodedSet(decoded, labels[readable], place, with_index, self.channels)
        data.files, data.file_rows, data.left_out = images, rows[readable], tuple(broken)
        return data


class ImageNet(ImageFolder):
    """The classification images of ILSVRC 2012 (Russakovsky et al. 2015), in train/<wnid>/ and val/<wnid>/.

    The 50,000 images of val/ are what everybody reports, so they are the test images here, and nothing is chosen on
    them. The classes have the names of LOC_synset_mapping.txt or synset_words.txt, if one of them is in `root`.
    """

    places: Mapping[str, str] = {"train": "train", "test": "val"}
    own_mean, own_std = STATISTICS["imagenet"]["mean"], STATISTICS["imagenet"]["std"]

    def class_names(self) -> list[str]:
        for file in (self.root / "LOC_synset_mapping.txt", self.root / "synset_words.txt"):
            if file.is_file():
                lines = (line.partition(" ") for line in file.read_text().splitlines())
                names = {wnid: name for wnid, _, name in lines}
                return [names.get(wnid, wnid) for wnid in self.listing.classes]
        return self.listing.classes
