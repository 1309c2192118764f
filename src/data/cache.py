"""Decoded images kept on disk, to be memory-mapped: a file is decoded once, whatever run asks for it."""

import fcntl
import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from src.data.decode import UNREADABLE, decode

CHUNK = 2**25  # bytes of pixels that are written at a time


class DecodedCache:
    """Image files as rows of squares, and the key of each: `<path>.pixels`, uint8 (R, C, S, S), and `<path>.keys` (R,).

    Both only grow, the pixels first. So whatever a kill or a damage leaves counts as far as both reach, and a key that
    is damaged is one that nobody asks for. Delete the files to be rid of the rows of images that have changed.
    """

    def __init__(self, path: Path, side: int, channels: int) -> None:
        self.pixels, self.keys, self.lock = (Path(f"{path}.{kind}") for kind in ("pixels", "keys", "lock"))
        self.shape, self.row_bytes = (channels, side, side), channels * side**2

    def rows(self, files: list[str]) -> tuple[Tensor, dict[str, str]]:
        """The row of each file, int64 (N,), which is decoded if it has none; -1 for the broken ones, and why they are.

        One process decodes at a time, the others wait and then find the rows.

        Raises:
            ValueError: the disk is full; what was added is taken away again.
        """
        keys, broken = [_key(file) for file in files], {}
        if not set(keys) <= set(self._known()):
            self.lock.parent.mkdir(parents=True, exist_ok=True)
            with open(self.lock, "a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # let go when the file is closed, were it by a kill
                broken = self._add(dict(zip(keys, files, strict=True)))
        rows = {key: row for row, key in enumerate(self._known())}
        return torch.tensor([rows.get(key, -1) for key in keys]), broken

    def images(self) -> Tensor:
        """All rows, memory-mapped, not to be written to."""
        mapped = np.memmap(self.pixels, np.uint8, "r", shape=(len(self._known()), *self.shape))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # so it may be larger than RAM
            return torch.from_numpy(mapped)

    def _known(self) -> list[int]:
        if not self.keys.is_file() or not self.pixels.is_file():
            return []
        return np.fromfile(self.keys, np.uint64)[: self.pixels.stat().st_size // self.row_bytes].tolist()

    def _cut(self, rows: int) -> None:
        for file, size in ((self.pixels, self.row_bytes), (self.keys, 8)):
            os.truncate(file, rows * size) if rows else file.unlink(missing_ok=True)

    def _add(self, files: dict[int, str]) -> dict[str, str]:
        known = self._known()  # several are alike where zeros have overwritten them
        there = set(known)
        missing = [key for key in files if key not in there]
        self._cut(len(known))
        step, broken = max(CHUNK // self.row_bytes, 1), dict[str, str]()
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the interpreter lock while it decodes
            for first in track(range(0, len(missing), step), f"decoding {len(missing):,} images"):
                chunk = missing[first : first + step]
                found = list(pool.map(lambda key: self._attempt(files[key]), chunk))
                broken |= {files[key]: got for key, got in zip(chunk, found, strict=True) if isinstance(got, str)}
                good = np.array([key for key in chunk if files[key] not in broken], np.uint64)
                try:
                    for file, content in (
                        (self.pixels, b"".join(pixels for pixels in found if isinstance(pixels, bytes))),
                        (self.keys, good.tobytes()),
                    ):
                        with open(file, "ab") as out:
                            out.write(content)
                except OSError as error:
                    self._cut(len(known))
                    size = len(missing) * self.row_bytes / 1e9
                    raise ValueError(
                        f"{self.pixels} cannot be written ({error.strerror}): {len(missing):,} images need {size:.2g} "
                        f"GB. Set data.cache_dir to a larger disk, or data.mode=stream, which needs none."
                    ) from error
        return broken

    def _attempt(self, file: str) -> bytes | str:
        try:
            return decode(file, self.shape[1], self.shape[0]).tobytes()
        except UNREADABLE as error:
            return str(error)


def _key(file: str) -> int:
    """64 bits of a hash of its path, its size and the time of its last change."""
    try:
        status = os.stat(file)
        state = f"|{status.st_size}|{status.st_mtime_ns}"
    except OSError:  # decoding it will tell
        state = ""
    return int.from_bytes(hashlib.blake2b(os.fsencode(file + state), digest_size=8).digest(), "big")
