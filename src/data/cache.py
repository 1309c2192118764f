"""Decoded images kept on disk, to be memory-mapped: a file is decoded once, whatever run asks for it."""

import fcntl
import math
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from src.data.decode import UNREADABLE

CHUNK = 2**25  # bytes of pixels that are written at a time


class DecodedCache:
    """Rows of pixels and the key of each: `<path>.pixels`, uint8 (R, *shape), and `<path>.keys`, uint64 (R,).

    Both only grow, the pixels first. So whatever a kill or a damage leaves counts as far as both reach, and a key that
    is damaged is one that nobody asks for. Delete the files to be rid of the rows of images that have changed.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self.pixels, self.keys, self.lock = (Path(f"{path}.{kind}") for kind in ("pixels", "keys", "lock"))
        self.shape, self.row_bytes = shape, math.prod(shape)

    def _known(self) -> np.ndarray:
        if not self.keys.is_file() or not self.pixels.is_file():
            return np.empty(0, np.uint64)
        return np.fromfile(self.keys, np.uint64)[: self.pixels.stat().st_size // self.row_bytes]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The row of each key (N,), -1 where it is not there."""
        rows = {key: row for row, key in enumerate(self._known().tolist())}
        return np.array([rows.get(key, -1) for key in keys.tolist()], np.int64)

    def images(self) -> Tensor:
        """All rows, uint8 (R, *shape), memory-mapped, not to be written to."""
        mapped = np.memmap(self.pixels, np.uint8, "r", shape=(len(self._known()), *self.shape))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # so it may be larger than RAM
            return torch.from_numpy(mapped)

    def add(self, keys: np.ndarray, decode: Callable[[int], np.ndarray]) -> dict[int, str]:
        """See to it that there is a row for every key; one process at a time, the others wait and then find the rows.

        Args:
            decode: gives the pixels of the i-th key.

        Returns:
            For those that cannot be decoded, i and the reason.

        Raises:
            ValueError: the disk is full; what was added is taken away again.
        """
        if (self.find(keys) >= 0).all():
            return {}
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with open(self.lock, "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, were it by a kill
            missing, before = np.flatnonzero(self.find(keys) < 0).tolist(), len(self._known())
            self._cut(before)
            try:
                return self._append(missing, keys, decode)
            except OSError as error:
                self._cut(before)
                size = len(missing) * self.row_bytes / 1e9
                raise ValueError(
                    f"{self.pixels} cannot be written ({error.strerror}): {len(missing):,} images need {size:.2g} GB. "
                    f"Set data.cache_dir to a larger disk, or data.mode=stream, which needs none."
                ) from error

    def _cut(self, rows: int) -> None:
        for file, size in ((self.pixels, self.row_bytes), (self.keys, 8)):
            os.truncate(file, rows * size) if rows else file.unlink(missing_ok=True)

    def _append(self, missing: list[int], keys: np.ndarray, decode: Callable[[int], np.ndarray]) -> dict[int, str]:
        def attempt(i: int) -> np.ndarray | str:
            try:
                return decode(i)
            except UNREADABLE as error:
                return str(error)

        broken, step = {}, max(CHUNK // self.row_bytes, 1)
        chunks = [missing[first : first + step] for first in range(0, len(missing), step)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter lock while it decodes
            for chunk in track(chunks, f"decoding {len(missing):,} images"):
                good = {}
                for i, pixels in zip(chunk, pool.map(attempt, chunk), strict=True):
                    if isinstance(pixels, str):
                        broken[i] = pixels
                    else:
                        good[i] = pixels.tobytes()
                for file, content in ((self.pixels, b"".join(good.values())), (self.keys, keys[list(good)].tobytes())):
                    with open(file, "ab") as out:
                        out.write(content)
        return broken
