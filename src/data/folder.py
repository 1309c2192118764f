"""A folder of your own images, one subfolder per class.

Every image is decoded once, to a square of uint8 RGB (grey where data.channels is 1), into one memory-mapped file;
training reads that file and so takes the same path as the data sets that fit in memory.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from rich.progress import track
from torch import Tensor

from src.data.listing import Listing, list_images
from src.data.memory import MemoryDataModule
from src.runs.folder import whole


class ImageFolder(MemoryDataModule):
    """Class folders under `root`: train/, optional val/ and test/, or the class folders alone.

    Images are stored with their shorter side at `resize` (or `image_size`) and the ends of the longer side cut off.
    A missing test/ is carved from the training images, stratified, always the same; a missing val/ by `val_size`.

    Args:
        cache_dir: where the decoded images are kept, 3 * side^2 bytes each; rebuilt when a file under `root` changes.
        test_size: share (float) or number (int) of the training images to test on where there is no test/.
    """

    def __init__(self, *, cache_dir: str, test_size: float = 0.1, **options: Any) -> None:
        super().__init__(**options)
        self.cache_dir, self.test_size = Path(cache_dir), test_size
        self.side = self.resize or self.image_size

    def fetch(self) -> None:
        """Decode the images, unless the cache has them as they are now."""
        listing = list_images(self.root)
        cache = self._cache_path(listing)
        if not cache.exists():
            paths = [path for images in listing.splits.values() for path, _ in images]
            write_cache(cache, paths, self.side, self.channels)
            for stale in set(cache.parent.glob(f"{cache.stem.rpartition('-')[0]}-*.npy")) - {cache}:
                stale.unlink(missing_ok=True)

    def load_train(self) -> tuple[Tensor, Tensor]:
        return self._splits["train"]

    def load_val(self) -> tuple[Tensor, Tensor] | None:
        return self._splits.get("val")

    def load_test(self) -> tuple[Tensor, Tensor]:
        return self._splits["test"]

    @property
    def has_test(self) -> bool:
        return "test" in self._splits

    def _cache_path(self, listing: Listing) -> Path:
        """Named after the folder, side and channels, then after the split, name, size and time of every file."""
        root = self.root.resolve()
        files = hashlib.sha256()
        for split, images in listing.splits.items():
            for path, _ in images:
                stat = path.stat()
                files.update(f"{split}|{path.relative_to(self.root)}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
        place = hashlib.sha256(str(root).encode()).hexdigest()[:8]
        return (
            self.cache_dir
            / f"{root.name}-{place}-{self.side}{'px' if self.channels == 3 else 'grey'}-{files.hexdigest()[:16]}.npy"
        )

    @cached_property
    def _splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        listing = list_images(self.root)
        self.classes = listing.classes
        # "c", copy on write: torch wants an array it may write to, and the file stays as it is
        decoded = torch.from_numpy(np.load(self._cache_path(listing), mmap_mode="c"))
        labels = [torch.tensor([label for _, label in images]) for images in listing.splits.values()]
        parts = decoded.split([len(part) for part in labels])
        return dict(zip(listing.splits, zip(parts, labels, strict=True), strict=True))


def write_cache(cache: Path, paths: list[Path], side: int, channels: int = 3) -> None:
    """Decode `paths` into the .npy file `cache`, uint8 (N, channels, side, side); the file appears when it is complete.

    Raises:
        ValueError: images cannot be read; names them.
    """
    with whole(cache) as partial:
        shape = (len(paths), channels, side, side)
        decoded = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)

        def work(i: int) -> str | None:
            try:
                decoded[i] = decode(paths[i], side, channels)
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                return f"{paths[i]} ({error})"
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter lock while it decodes
            progress = track(pool.map(work, range(len(paths))), f"decoding {len(paths):,} images", total=len(paths))
            broken = [message for message in progress if message]
        if broken:
            more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
            raise ValueError(
                f"{len(broken)} of {len(paths)} images cannot be read: {'; '.join(broken[:5])}{more}. "
                f"Repair or remove them."
            )
        decoded.flush()


def decode(path: str | Path, side: int, channels: int = 3) -> np.ndarray:
    """Read an image file as uint8 (channels, side, side): upright, and otherwise as `square` makes it.

    Of an animation the first frame counts.
    """
    with Image.open(path) as image:
        image.draft(None, (2 * side, 2 * side))  # a JPEG may be decoded smaller, which is quicker, but not below this
        return square(ImageOps.exif_transpose(image), side, channels)


def square(image: Image.Image, side: int, channels: int) -> np.ndarray:
    """An image as uint8 RGB, or grey with one channel, (channels, side, side): shorter side resized, centre cut.

    Transparent pixels show white, and 16-bit grey keeps its upper 8 bits.
    """
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        image = Image.fromarray((grey // 256 if grey.max() > 255 else grey).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    fitted = ImageOps.fit(image.convert("RGB" if channels == 3 else "L"), (side, side), Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(side, side, channels).transpose(2, 0, 1)
