"""Which images a folder of class folders holds."""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")
LAYOUT = "Expected are train/<class>/*.jpg (val/ and test/ beside train/ are optional), or just <class>/*.jpg."


class Listing(NamedTuple):
    """The class names, sorted, and per split ("train", "val", "test") its (path, class index) pairs, sorted."""

    classes: list[str]
    splits: dict[str, list[tuple[Path, int]]]


def list_images(root: str | Path) -> Listing:
    """List the jpg, png and webp files under `root`, in subfolders of the class folders too.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it or in one of its classes.
        ValueError: fewer than two classes, or a split has a class that train/ lacks.
    """
    folders = _split_folders(Path(root))
    classes = _class_names(folders["train"])
    ignored: list[Path] = []
    splits: dict[str, list[tuple[Path, int]]] = {}
    for split, folder in folders.items():
        if unknown := sorted(set(_subfolders(folder)) - set(classes)):
            raise ValueError(f"{folder} has classes that {folders['train']} lacks: {', '.join(unknown)}.")
        found = [_images_in(folder / name, ignored) for name in classes]
        splits[split] = [(path, index) for index, paths in enumerate(found) for path in paths]
        empty = [name for name, paths in zip(classes, found, strict=True) if not paths]
        if not splits[split] or (split == "train" and empty):
            where = f"{folder} ({', '.join(empty)})" if splits[split] else str(folder)
            raise FileNotFoundError(f"no images in {where}. Readable are {', '.join(EXTENSIONS)}. {LAYOUT}")
    if ignored:
        warnings.warn(f"ignored {len(ignored)} files under {root} that are no images, e.g. {ignored[0]}", stacklevel=2)
    return Listing(classes, splits)


def _split_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"the image folder {root} does not exist; set data.root to yours. {LAYOUT}")
    if not (root / "train").is_dir() or not _subfolders(root / "train"):
        return {"train": root}
    return {split: root / split for split in ("train", "val", "test") if (root / split).is_dir()}


def _class_names(folder: Path) -> list[str]:
    names = _subfolders(folder)
    if len(names) < 2:
        has = f"one class ({names[0]})" if names else "no class folders"
        raise ValueError(f"{folder} has {has}; a classifier needs at least two. {LAYOUT}")
    return names


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images_in(folder: Path, ignored: list[Path]) -> list[Path]:
    files = [Path(parent, name) for parent, _, names in os.walk(folder, followlinks=True) for name in names]
    images = {file for file in files if file.name.lower().endswith(EXTENSIONS) and not file.name.startswith(".")}
    ignored += [file for file in files if file not in images and not file.name.startswith(".")]
    return sorted(images)
