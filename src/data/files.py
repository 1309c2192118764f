"""Data sets of official files: found, verified by checksum, downloaded if they are missing."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from src.data.memory import MemoryDataModule
from src.data.official import MIRROR, absent, find

STALLED = 30.0  # seconds without a byte, after which a download is given up


@contextmanager
def given_up_when_stalled() -> Iterator[None]:
    """Within it downloads of torch and torchvision, which know no time limit, end with an OSError where they stall."""
    waits = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED)
    try:
        yield
    finally:
        socket.setdefaulttimeout(waits)


class OfficialDataModule(MemoryDataModule):
    """Base of the data sets whose files torchvision knows: in their official folder, which lies in `root`.

    Args:
        download: fetch the official archive if files are missing; altered ones, perhaps somebody's own, stay.
        mirror: URL of a folder that holds the same archive; the checksum stays the official one.
    """

    source: ClassVar[Any]  # torchvision's class: the names of the files, and all checksums
    unless = ""  # when the files are meant to be others

    def __init__(self, *, download: bool = False, mirror: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.download, self.mirror = download, mirror
        self.folder = self.root / self.source.base_folder

    def files(self) -> list[tuple[str, str | None]]:
        """(name inside `folder`, MD5) pairs; None is not checked for its content."""
        raise NotImplementedError

    def fetch(self) -> None:
        """See to it that the files are there and unaltered.

        Raises:
            FileNotFoundError: files are missing, or the download failed.
            ValueError: a file is truncated or altered.
        """
        name = self.source.__name__
        if self.download and self._missing():
            self._download(find(name, self.root, self.mirror))
        if missing := self._missing():
            raise absent(name, self.root, f"missing: {', '.join(missing)}")
        for file, md5 in self.files():
            path, state = self.folder / file, (self.folder / file).stat()
            if md5 is not None and not _has_md5(path, md5, state.st_size, state.st_mtime_ns):
                raise ValueError(
                    f"{path} is truncated or altered: its MD5 is not the official one. Delete it and "
                    f"run again with data.download=true{self.unless}."
                )

    def _download(self, url: str) -> None:
        path, md5 = self.root / self.source.filename, self.source.tgz_md5
        try:
            with given_up_when_stalled():
                download_url(url, str(self.root), path.name, md5)
            with TemporaryDirectory(dir=self.root) as fresh:
                extract_archive(str(path), fresh)
                self.folder.mkdir(exist_ok=True)
                for file in Path(fresh, self.folder.name).iterdir():
                    if not (self.folder / file.name).exists():  # no file is ever half there, nor in place of another
                        file.rename(self.folder / file.name)
        except (OSError, RuntimeError) as error:
            raise absent(self.source.__name__, self.root, f"{url}: {error}", MIRROR) from error
        finally:
            if not check_integrity(str(path), md5):
                path.unlink(missing_ok=True)  # half of it is of no use

    def _missing(self) -> list[str]:
        return [file for file, _ in self.files() if not (self.folder / file).is_file()]


@cache
def _has_md5(path: Path, md5: str, size: int, mtime_ns: int) -> bool:
    """Hashes a file once in a process: Lightning prepares the data for every stage, a sweep for every job."""
    return check_integrity(str(path), md5)
