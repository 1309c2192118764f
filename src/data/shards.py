"""Shards of images in litdata's format, in a folder or in object storage: reading and writing them.

`write_shards` makes a folder of litdata data sets: train/, val/ and test/, as far as there are such images, of items
(bytes of an image file, label), and labels/, whose one item is JSON: {"classes": [names], "labels": {split: [labels]}}.
"""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset

from src.data.decode import UNREADABLE, decode, is_grey, plain
from src.data.draw import hashed_generator
from src.data.listing import Files
from src.data.memory import LazyImages, MemoryDataModule
from src.data.samplers import WINDOW
from src.data.source import SourceDataModule, as_image
from src.data.streaming import leave_out
from src.runs.folder import whole

CHUNK = "64MB"  # of image files, some hundreds: what one request to a storage brings


class Shards(SourceDataModule):
    """What `write_shards` wrote, or a litdata data set of images with labels, whose splits are carved.

    The items of a foreign one are (image, label), or have the keys "image" and "label"; an image is an image file's
    bytes or what `SourceDataModule` takes. Its labels are read from all its items at the start.

    Args:
        root: a folder, or a place in object storage that litdata knows, such as s3://bucket/name.
        cache_dir, cache_size: where chunks that come from a storage are kept, and how many bytes of them, as "200GB".
        options: of `SourceDataModule`.
    """

    def __init__(self, *, root: str, cache_dir: str, cache_size: str = "200GB", **options: Any) -> None:
        litdata()
        super().__init__(root=root, **{"mode": "stream", **options})
        self.place, self.open = str(root).rstrip("/"), partial(opened, cache_dir=cache_dir, max_cache_size=cache_size)

    def given_labels(self, source: Any) -> list[Any]:
        return source.targets or super().given_labels(source)  # written beside the items, which are not fetched to ask

    def load_sets(self, part: str) -> dict[str, Any]:
        sets: dict[str, Any] = super().load_sets(part)
        if part == "train" and self.streams:
            sets["train"].chunks = self.sources["train"].chunk_of(sets["train"].rows)
        return sets

    @cached_property
    def sources(self) -> dict[str, "Shard"]:
        try:
            try:
                (written,) = self.open(f"{self.place}/labels")[:]
            except Exception:  # of whatever kind the client of a storage raises them
                return {"train": Shard(partial(self.open, self.place))}
            known = json.loads(bytes(written))
            parts = {name: partial(self.open, f"{self.place}/{name}") for name in known["labels"]}
            return {name: Shard(part, known["classes"], known["labels"][name]) for name, part in parts.items()}
        except Exception as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(
                f"data.root={self.place} has no shards that litdata can read ({type(error).__name__}: {reason}); "
                f"python -m src.shards writes some."
            ) from error


class Shard(Dataset):
    """The (image, label) items of one litdata data set by their numbers, its images as PIL's where they are files.

    What lies in a storage comes a chunk at a time and is kept while it is used.
    """

    def __init__(
        self, open: Callable[[], Any], classes: list[str] | None = None, targets: list[Any] | None = None
    ) -> None:
        self.open, self.classes, self.targets = open, classes, targets
        intervals = open().cache.get_chunk_intervals()
        self.ends = torch.tensor([interval[-1] for interval in intervals])  # (chunks,) the number after its last item
        self.process, self.readers = 0, {}  # type: tuple[int, dict[int, Any]]

    def __len__(self) -> int:
        return int(self.ends[-1])

    def chunk_of(self, index: Tensor) -> Tensor:
        """The number of the chunk that each item lies in."""
        return torch.searchsorted(self.ends, index, right=True)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        from litdata.streaming.sampler import ChunkedIndex

        chunk = int(self.chunk_of(torch.tensor(index)))
        try:
            item = self._reader(chunk)[ChunkedIndex(index, chunk)]
        except FileNotFoundError:  # another process let the chunk go at this moment; now it is fetched again
            item = self._reader(chunk)[ChunkedIndex(index, chunk)]
        return (item["image"], item["label"]) if isinstance(item, dict) and {"image", "label"} <= set(item) else item

    def _reader(self, chunk: int) -> Any:
        """The reader that is at this chunk: litdata lets a chunk go when its reader takes another."""
        if self.process != os.getpid():  # a reader's threads stay behind in a fork
            self.process, self.readers = os.getpid(), {}
        reader = self.readers.pop(chunk, None)
        if reader is None and len(self.readers) == WINDOW:
            reader = self.readers.pop(next(iter(self.readers)))  # the one that was not used for the longest time
        self.readers[chunk] = self.open() if reader is None else reader
        return self.readers[chunk]


def litdata() -> Any:
    """The package.

    Raises:
        ModuleNotFoundError: it is not installed; says how.
    """
    try:
        import litdata
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"shards need {error.name}: pip install -e '.[shards]'") from error
    return litdata


class Refused:
    """In the place of litdata's serializers that unpickle: data run no code."""

    def setup(self, form: str) -> None:
        raise ValueError(f"its items hold a {form}, and reading that may run code")


def opened(place: str, **options: Any) -> Any:
    """A litdata data set, ready to be read by number."""
    data = litdata().StreamingDataset(place, serializers=dict.fromkeys(("pickle", "graph"), Refused()), **options)
    data[:0]  # opens it so that it reads whole chunks, where it would ask a storage for each item
    return data


def write_shards(data: MemoryDataModule, out: Path) -> dict[str, int]:
    """Writes the images of a data set, as many as its `limit` says: those of files as they are, else PNG.

    They come in random order, so that a chunk has images of all classes. The folder appears when it is complete.

    Returns:
        The number of images by split; one that the data set carves is not among them, but still among the others.

    Raises:
        FileExistsError: `out` is there.
        ReadError: an image cannot be read, and the data set does not skip such images.
    """
    litdata()
    if out.exists():
        raise FileExistsError(f"out={out} is there already; choose a new folder.")
    with whole(out) as folder:
        known: dict[str, list[Any]] = {}
        for split in ("train", "val", "test"):
            given = getattr(data, f"load_{split}")() if split != "test" or data.has_test else None
            if given is not None:
                images, labels = given
                rows = data.limited(labels, torch.arange(len(labels)))
                rows = rows[torch.randperm(len(rows), generator=hashed_generator(0))]
                shown = track(rows.tolist(), f"writing {len(rows):,} {split} images")
                known[split] = []
                _write(folder / split, _items(images, labels, shown, data.skips, known[split]))
        _write(folder / "labels", [json.dumps({"classes": data.classes, "labels": known}).encode()])
    return {split: len(labels) for split, labels in known.items()}


def _write(folder: Path, items: Iterable[Any]) -> None:
    from litdata.streaming.cache import Cache

    cache = Cache(str(folder), chunk_bytes=CHUNK, max_cache_size="1GB")  # a reader's; litdata tells of one it chooses
    for number, item in enumerate(items):
        cache[number] = item
    cache.done()
    cache.merge()


def _items(
    images: Any, labels: Tensor, rows: Iterable[int], skip: bool, written: list[Any]
) -> Iterator[tuple[bytes, Any]]:
    """(bytes of an image file, label) of the images that can be read; the labels go into `written` too."""
    for row in rows:
        try:
            file = image_file(images, row)
        except UNREADABLE as error:
            if not isinstance(images, LazyImages):
                raise
            leave_out(images, row, error, skip)
            continue
        written.append(labels[row].tolist())
        yield file, written[-1]
    if not written:
        raise ValueError("none of the images can be read")


def image_file(images: Any, row: int) -> bytes:
    """The bytes of a file as it is, or of a PNG, upright, of an image that is held or read by a Dataset.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    if isinstance(images, Files):
        content = Path(images.name(row)).read_bytes()
        decode(io.BytesIO(content), side=1)  # so small, a JPEG is decoded at an eighth of its size
        return content
    file = io.BytesIO()
    image = as_image("images", images[row]) if isinstance(images, Tensor) else images.open(row)
    plain(image, "L" if is_grey(image) else "RGB").save(file, "PNG")
    return file.getvalue()
