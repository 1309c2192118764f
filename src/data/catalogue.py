"""Data sets by name: torchvision's, and those in the format of Hugging Face's `datasets`."""

import difflib
import warnings
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision import datasets

from src.data.augment import RandomHorizontalFlip
from src.data.files import given_up_when_stalled
from src.data.source import SourceDataModule

# What torchvision calls the splits; those that are not here are carved from the training images.
SPLITS: dict[str, dict[str, Any]] = {
    "CIFAR10 CIFAR100 EMNIST FashionMNIST KMNIST MNIST QMNIST USPS": {"train": True, "test": False},
    "FER2013 Food101 GTSRB STL10 StanfordCars SVHN": {"train": "train", "test": "test"},
    "DTD FGVCAircraft Flowers102 PCAM RenderedSST2": {"train": "train", "val": "val", "test": "test"},
    "CelebA Country211": {"train": "train", "val": "valid", "test": "test"},
    "CLEVRClassification ImageNet Imagenette": {"train": "train", "test": "val"},
    "OxfordIIITPet": {"train": "trainval", "test": "test"},
    "Places365": {"train": "train-standard", "test": "val"},
    "Caltech101 Caltech256 EuroSAT FakeData INaturalist Omniglot SEMEION SUN397": {"train": None},
}
NAMES = {name: splits for names, splits in SPLITS.items() for name in names.split()}
# Letters, digits and traffic signs: the mirror image of one is another, or none.
SIGNS = ["EMNIST", "GTSRB", "KMNIST", "MNIST", "Omniglot", "QMNIST", "RenderedSST2", "SEMEION", "SVHN", "USPS"]
# Arguments of the others that these do not take.
LACKS = {"FER2013": {"download"}, "ImageNet": {"download"}, "FakeData": {"download", "root"}}


class Torchvision(SourceDataModule):
    """A classification data set of torchvision, with its official splits; one without them is carved.

    Args:
        name: of torchvision's class.
        download: fetch the files into `root` if they are missing.
        options: for torchvision's class, such as {split: balanced} of EMNIST.
        others: options of `SourceDataModule`.

    Raises:
        ValueError: an unknown name, or options that the class does not take.
        FileNotFoundError: files are missing, or the download failed.
    """

    def __init__(
        self, *, name: str, download: bool = False, options: Mapping[str, Any] | None = None, **others: Any
    ) -> None:
        super().__init__(**others)
        if name not in NAMES:
            near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.4) or sorted(NAMES)
            raise ValueError(
                f"data.name={name}: torchvision has no such images with classes; choose {', '.join(near)}."
            )
        self.kind, self.download, self.options = getattr(datasets, name), download, dict(options or {})
        self.splits = NAMES[name]
        if name in SIGNS and any(isinstance(step, RandomHorizontalFlip) for step in self.before_normalize):
            warnings.warn(f"data.augment.flip mirrors the signs of {name}: data.augment.flip=null.", stacklevel=2)
        self.keyword = {bool: "train", str: "split"}.get(type(self.splits["train"]))
        if ours := [key for key in self.options if key in ("root", "download", self.keyword)]:
            raise ValueError(f"data.options={self.options}: {', '.join(ours)} is set here; leave it out.")

    def fetch(self) -> None:
        _ = self.sources  # which opens them

    @cached_property
    def sources(self) -> dict[str, Any]:
        return {split: self._open(theirs) for split, theirs in self.splits.items()}

    def _open(self, split: str | bool | None) -> Any:
        name = self.kind.__name__
        for download in (False, True) if self.download else (False,):  # a download first hashes all that is there
            ours = {"root": str(self.root), "download": download, self.keyword: split}
            taken = {key: ours[key] for key in ours.keys() - LACKS.get(name, set()) if key is not None}
            try:
                with given_up_when_stalled():
                    return self.kind(**self.options, **taken)
            except TypeError as error:
                raise ValueError(f"torchvision's {name} does not take data.options={self.options}: {error}.") from error
            except (RuntimeError, OSError) as error:
                problem = error
        raise FileNotFoundError(
            f"torchvision's {name} is not in {self.root.resolve()}, and not to be had with "
            f"data.download={str(self.download).lower()}: {problem}"
        ) from problem


class HuggingFace(SourceDataModule):
    """A data set of the Hugging Face hub, or a folder: of `save_to_disk`, of images or of parquet files.

    Its splits are train, test, and validation (or valid, val, dev); those that are missing are carved from train.

    Args:
        name: of the data set on the hub, or the folder.
        download: take it from the hub; else only a folder is read, and nobody asked.
        image_column, label_column: None takes the one column of images, and the one of class labels.
        options: for `datasets.load_dataset`, such as {name: a configuration, revision: a tag}.
        others: options of `SourceDataModule`.

    Raises:
        FileNotFoundError: there is no such folder, and no such data set on the hub, or it must not be asked.
    """

    def __init__(
        self,
        *,
        name: str,
        download: bool = False,
        image_column: str | None = None,
        label_column: str | None = None,
        options: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        if name == "pandas":
            raise ValueError("data.name=pandas would read pickles, and reading one may run code.")
        self.place, self.download, self.options = name, download, dict(options or {})
        self.image_column, self.label_column = image_column, label_column

    def fetch(self) -> None:
        _ = self.sources  # which opens them

    @cached_property
    def sources(self) -> dict[str, "Table"]:
        try:
            from datasets import config, load_dataset, load_from_disk
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"data=huggingface needs {error.name}: pip install -e '.[huggingface]'"
            ) from error
        if not self.download and not Path(self.place).is_dir():
            raise FileNotFoundError(f"data.name={self.place} is no folder here; data.download=true asks the hub.")
        offline, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE or not self.download
        saved = any(Path(self.place, file).is_file() for file in ("dataset_dict.json", "state.json"))
        try:
            found = load_from_disk(self.place) if saved else load_dataset(self.place, **self.options)
        except ConnectionError as error:
            raise FileNotFoundError(f"data.name={self.place} is no folder here, and: {error}") from error
        finally:
            config.HF_HUB_OFFLINE = offline
        splits = found if isinstance(found, dict) else {"train": found}
        if "train" not in splits:
            raise ValueError(f"data.name={self.place} has the splits {', '.join(splits)}, but no train.")
        image = self._column(splits["train"].features, "image_column", "Image")
        label = self._column(splits["train"].features, "label_column", "ClassLabel")
        ours = {"train": "train", "dev": "val", "val": "val", "valid": "val", "validation": "val", "test": "test"}
        return {ours[name]: Table(splits[name], image, label) for name in ours if name in splits}  # the last one counts

    def _column(self, features: Mapping[str, Any], option: str, kind: str) -> str:
        asked = getattr(self, option)
        found = [name for name, feature in features.items() if asked == name or type(feature).__name__ == kind]
        if asked not in (None, *features) or (asked is None and len(found) != 1):
            raise ValueError(
                f"data.{option}={asked or 'null'}: data.name={self.place} has {len(found)} columns of type {kind}; "
                f"choose one of {', '.join(features)}."
            )
        return asked or found[0]


class Table(Dataset):
    """A table of `datasets` as (image, label) items."""

    def __init__(self, table: Any, image: str, label: str) -> None:
        self.table, self.image, self.label = table.select_columns([image, label]), image, label
        self.classes = getattr(table.features[label], "names", None)

    @property
    def targets(self) -> list[Any]:
        return list(self.table[self.label])

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.table[index]
        return row[self.image], row[self.label]
