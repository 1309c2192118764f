"""Which images a folder of class folders holds, kept beside the cache: a second start looks at the folders alone."""

import json
import os
import time
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from src.data.decode import open_image, printable
from src.data.memory import LazyImages
from src.runs.folder import whole, write_json

LAYOUT = "Expected are train/<class>/*.jpg (val/ and test/ beside train/ are optional), or just <class>/*.jpg."
SPLITS = {"train": "train", "val": "val", "test": "test"}  # and the folder of each
TICK = 2_000_000_000  # nanoseconds: no file system's clock is coarser

Folder = tuple[str, int, int]  # path from the root, label, number of images


class Files(LazyImages):
    """The images of one split, in the order of their classes.

    Args:
        folders: those that hold the images, in the order of the names.
        names: (N,) bytes, the names of the files.
    """

    remedy = "; data.broken=skip leaves out such images"

    def __init__(self, root: Path, folders: Sequence[Folder], names: np.ndarray) -> None:
        self.root, self.names = root, names
        self.paths, labels, counts = zip(*folders, strict=True)
        self.labels = torch.from_numpy(np.repeat(labels, counts))  # int64 (N,)
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return len(self.names)

    def name(self, row: int) -> str:
        """The path of a file."""
        folder = self.paths[int(np.searchsorted(self.ends, row, "right"))]
        return os.path.join(self.root, folder, os.fsdecode(self.names[row]))

    def open(self, row: int) -> Image.Image:
        return open_image(self.name(row))


class Listing(NamedTuple):
    """The class folders, sorted, and the images of each split ("train", "val", "test")."""

    classes: list[str]
    splits: dict[str, Files]


def open_listing(root: Path, kept: Path, places: Mapping[str, str] = SPLITS) -> Listing:
    """The files under `root` that torchvision's ImageFolder takes for images, in subfolders of the class folders too.

    As `kept`.json and .npy, memory-mapped, have them, if no folder has changed since; else looked for, and kept there.

    Args:
        places: the folder of each split.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it or in one of its classes.
        ValueError: fewer than two classes, or a split has a class that train/ lacks.
    """
    header, names = _read(root, kept) or _find(root, kept, places)
    if header["ignored"]:
        warnings.warn(f"ignored files under {root} that are no images: {header['ignored']}", stacklevel=2)
    splits, first = {}, 0
    for split, folders in header["splits"].items():
        last = first + sum(count for _, _, count in folders)
        splits[split], first = Files(root.resolve(), folders, names[first:last]), last
    return Listing(header["classes"], splits)


def _read(root: Path, kept: Path) -> tuple[dict[str, Any], np.ndarray] | None:
    """What was kept; None if that is nothing or damaged, or a folder or what is looked for has changed."""
    try:
        header = json.loads(Path(f"{kept}.json").read_text())
        names = np.load(f"{kept}.npy", mmap_mode="r")
        changed = any(os.stat(root / path).st_mtime_ns != then for path, then in header["changed"].items())
        changed |= header["looked_for"] != list(IMG_EXTENSIONS)
        return None if changed or zlib.crc32(names) != header["crc"] else (header, names)
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None


def _find(root: Path, kept: Path, places: Mapping[str, str]) -> tuple[dict[str, Any], np.ndarray]:
    if not root.is_dir():
        raise FileNotFoundError(f"the image folder {root} does not exist; set data.root to yours. {LAYOUT}")
    tops = {"train": root}
    if (root / places["train"]).is_dir() and _subfolders(root / places["train"]):
        tops = {split: root / place for split, place in places.items() if (root / place).is_dir()}
    classes = _class_names(tops["train"])
    now, changed = time.time_ns(), {str(top): os.stat(top).st_mtime_ns for top in (root, *tops.values())}
    splits: dict[str, list[Folder]] = {split: [] for split in tops}
    names: list[np.ndarray] = []
    ignored: list[str] = []
    for split, top in tops.items():
        if unknown := sorted(set(_subfolders(top)) - set(classes)):
            raise ValueError(f"{top} has classes that {tops['train']} lacks: {', '.join(unknown)}.")
        for label, name in enumerate(classes):
            seen: set[tuple[int, int]] = set()
            for parent, folders, files in os.walk(top / name, followlinks=True):
                status = os.stat(parent)
                if (status.st_dev, status.st_ino) in seen:  # a symbolic link led here once more
                    folders.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                folders.sort()
                changed[parent] = status.st_mtime_ns
                files = sorted(file for file in files if not file.startswith("."))
                images = [file for file in files if file.lower().endswith(IMG_EXTENSIONS)]
                ignored += [os.path.join(parent, file) for file in set(files) - set(images)]
                splits[split].append((os.path.relpath(parent, root), label, len(images)))
                names += [np.array([os.fsencode(file) for file in images])] if images else []
        filled = {label for _, label, count in splits[split] if count}
        if not filled or (split == "train" and len(filled) < len(classes)):
            empty = ", ".join(name for label, name in enumerate(classes) if label not in filled)
            where = f"{top} ({empty})" if filled else str(top)
            raise FileNotFoundError(f"no images in {where}. Readable are {', '.join(IMG_EXTENSIONS)}. {LAYOUT}")
    all_names = np.concatenate(names)
    header = {
        "classes": [printable(name) for name in classes],
        "splits": splits,
        "looked_for": IMG_EXTENSIONS,
        # a change as young as this may not be the last within one tick of the clock: 0 is never found again
        "changed": {os.path.relpath(path, root): then * (then < now - TICK) for path, then in changed.items()},
        "ignored": f"{len(ignored)}, e.g. {min(ignored)}" if ignored else "",
        "crc": zlib.crc32(all_names.data),
    }
    try:
        with whole(Path(f"{kept}.npy")) as partial:
            np.save(partial, all_names)
        write_json(Path(f"{kept}.json"), header)
    except OSError as error:
        warnings.warn(f"the list of the images is not kept for the next start: {error}", stacklevel=2)
    return header, all_names


def _class_names(folder: Path) -> list[str]:
    names = _subfolders(folder)
    if len(names) < 2:
        has = f"one class ({names[0]})" if names else "no class folders"
        raise ValueError(f"{folder} has {has}; a classifier needs at least two. {LAYOUT}")
    return names


def _subfolders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
