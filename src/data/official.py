"""Official data set files: found, verified by checksum, downloaded when asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from urllib.error import URLError

from torchvision.datasets import CIFAR10, STL10
from torchvision.datasets.utils import check_integrity, download_and_extract_archive


def ensure_files(
    source: type[CIFAR10] | type[STL10],
    files: Sequence[tuple[str, str | None]],
    root: Path,
    download: bool,
    mirror: str | None,
) -> None:
    """See to it that the files of a torchvision data set are there and unaltered.

    Args:
        source: the torchvision class, which knows the archive's URL and checksum.
        files: (name inside the data set's folder, MD5 or None) pairs; None is not checked for its content.

    Raises:
        FileNotFoundError: files are missing, or the download failed.
        ValueError: a file is truncated or altered.
    """
    name, folder = source.__name__, root / source.base_folder
    archive = source.filename
    official = source.url
    url = f"{mirror.rstrip('/')}/{archive}" if mirror else official
    by_hand = f"put {archive} from {official} there, unpacked"
    if download and _wrong(folder, files):
        try:
            download_and_extract_archive(url, str(root), filename=archive, md5=source.tgz_md5)
        except (URLError, OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"{name} could not be downloaded from {url} ({error}); try another host with data.mirror=URL, or "
                f"{by_hand} as {folder}."
            ) from error
        finally:
            if not check_integrity(str(root / archive), source.tgz_md5):
                (root / archive).unlink(missing_ok=True)  # half of it is of no use
    missing = [file for file, _ in files if not (folder / file).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{name} is not in {folder} (missing: {', '.join(missing)}). Switch the download on with "
            f"data.download=true, point data.root at the folder that holds {folder.name}, or {by_hand}."
        )
    for file in _wrong(folder, files)[:1]:
        raise ValueError(
            f"{folder / file} is truncated or altered: its MD5 is not the official one. Delete it and run again with "
            f"data.download=true, or {by_hand}."
        )


def _wrong(folder: Path, files: Sequence[tuple[str, str | None]]) -> list[str]:
    return [file for file, md5 in files if not _is_intact(folder / file, md5)]


def _is_intact(path: Path, md5: str | None) -> bool:
    if not path.is_file():
        return False
    state = path.stat()
    return md5 is None or _has_md5(path, md5, state.st_size, state.st_mtime_ns)


@cache
def _has_md5(path: Path, md5: str, size: int, mtime_ns: int) -> bool:
    """Hashes a file once in a process: Lightning prepares the data for every stage, a sweep for every job."""
    return check_integrity(str(path), md5)
