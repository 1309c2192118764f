"""Data sets of official files: found, verified by checksum, downloaded when asked."""

from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from torchvision.datasets.utils import check_integrity, download_and_extract_archive

from src.data.memory import MemoryDataModule


class OfficialDataModule(MemoryDataModule):
    """Base of the data sets whose files torchvision knows: in their official folder, which lies in `root`.

    Args:
        download: fetch the official archive if files are missing.
        mirror: URL of a folder that holds the same archive; the checksum stays the official one.
    """

    source: ClassVar[Any]  # torchvision's class: the archive's URL and checksum, and the names of the files

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
        name, archive = self.source.__name__, self.source.filename
        by_hand = f"put {archive} from {self.source.url} there, unpacked"
        if self.download and self._wrong():
            url = f"{self.mirror.rstrip('/')}/{archive}" if self.mirror else self.source.url
            try:
                download_and_extract_archive(url, str(self.root), filename=archive, md5=self.source.tgz_md5)
            except (OSError, RuntimeError) as error:
                raise FileNotFoundError(
                    f"{name} could not be downloaded from {url} ({error}); try another host with data.mirror=URL, or "
                    f"{by_hand} as {self.folder}."
                ) from error
            finally:
                if not check_integrity(str(self.root / archive), self.source.tgz_md5):
                    (self.root / archive).unlink(missing_ok=True)  # half of it is of no use
        missing = [file for file, _ in self.files() if not (self.folder / file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{name} is not in {self.folder} (missing: {', '.join(missing)}). Switch the download on with "
                f"data.download=true, point data.root at the folder that holds {self.folder.name}, or {by_hand}."
            )
        for file in self._wrong()[:1]:
            raise ValueError(
                f"{self.folder / file} is truncated or altered: its MD5 is not the official one. Delete it and run "
                f"again with data.download=true, or {by_hand}."
            )

    def _wrong(self) -> list[str]:
        return [file for file, md5 in self.files() if not _is_intact(self.folder / file, md5)]


def _is_intact(path: Path, md5: str | None) -> bool:
    return path.is_file() and (md5 is None or _has_md5(path, md5, path.stat().st_size, path.stat().st_mtime_ns))


@cache
def _has_md5(path: Path, md5: str, size: int, mtime_ns: int) -> bool:
    """Hashes a file once in a process: Lightning prepares the data for every stage, a sweep for every job."""
    return check_integrity(str(path), md5)
