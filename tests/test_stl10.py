"""STL10's binary files, written by the test in their official layout: planes of columns, labels from 1."""

from __future__ import annotations

import hashlib
import warnings

import numpy as np
import pytest
import torch
from torchvision import datasets

from src.data import stl10
from src.data.augment import RandomCrop
from src.data.stl10 import STL10

TRAIN, TEST = 40, 20


@pytest.fixture(autouse=True)
def own_files_are_welcome():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*where STL10 has")
        yield


@pytest.fixture
def folder(tmp_path):
    """Images whose top left quarter is red and whose top right quarter is green, with their number as blue."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for split, count in (("train", TRAIN), ("test", TEST)):
        upright = np.zeros((count, 3, 96, 96), np.uint8)  # channel, row, column
        upright[:, 0, :48, :48] = 255
        upright[:, 1, :48, 48:] = 255
        upright[:, 2] = np.arange(count)[:, None, None]
        upright.transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")  # columns first
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    rows = np.random.default_rng(0).permutation(TRAIN).reshape(10, 4)
    (folder / "fold_indices.txt").write_text("\n".join(" ".join(map(str, fold)) + " " for fold in rows) + "\n")
    (folder / "class_names.txt").write_text("\n".join(stl10.CLASSES) + "\n")
    return folder


def ready(folder, **options):
    data = STL10(**{"root": str(folder.parent), "num_classes": 10, "image_size": 96, "batch_size": 4} | options)
    data.prepare_data()
    data.setup()
    return data


def test_images_come_out_upright_with_their_labels(folder):
    data = ready(folder, val_size=0)
    for part, count in ((data.train_set, TRAIN), (data.test_set, TEST)):
        images = part.images
        assert images.shape == (count, 3, 96, 96)
        assert (images[:, 0, :48, :48] == 255).all()  # red: top left
        assert (images[:, 0, 48:] == 0).all()
        assert (images[:, 1, :48, 48:] == 255).all()  # green: top right
        assert images[:, 2, 95, 95].tolist() == list(range(count))
        assert part.labels.tolist() == [i % 10 for i in range(count)]
    assert data.classes == stl10.CLASSES


@pytest.mark.parametrize("fold", range(10))
def test_the_fold_is_the_official_one(folder, fold):
    official = [int(x) for x in (folder / "fold_indices.txt").read_text().splitlines()[fold].split()]
    data = ready(folder, fold=fold, val_size=0)
    assert data.train_set.images[:, 2, 0, 0].tolist() == official
    assert data.train_set.labels.tolist() == [i % 10 for i in official]
    assert len(data.test_set) == TEST


@pytest.mark.parametrize("fold", [-1, 10, 0.5, "all"])
def test_a_fold_out_of_range_is_refused(folder, fold):
    with pytest.raises(ValueError, match=rf"data\.fold={fold} is out of range; choose 0 to 9"):
        ready(folder, fold=fold)


def test_at_224_px_the_image_is_resized_to_256_and_cropped(folder):
    data = ready(folder, image_size=224, augment={"crop": RandomCrop(12, "reflect", size=224)})
    assert data.preprocess.spec["resize"] == 256
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape[-1] == 96
    out, _ = data.augment(images, labels)
    assert out.shape == data.preprocess(images).shape == (4, 3, 224, 224)
    # the red quarter ends at 128 of 256, so between 96 and 128 of a random crop and at 112 of the centre
    border = (out[:, 0, 40] > out[:, 0, 40].mean()).sum(1)
    assert ((border > 90) & (border < 134)).all()
    assert len(set(border.tolist())) > 1
    centre = data.preprocess(images)[:, 0, 40]
    assert (centre > centre.mean()).sum(1).tolist() == [112] * 4


def test_at_96_px_the_crop_is_padded_by_reflection(folder):
    data = ready(folder, augment={"crop": RandomCrop(12, "reflect", size=96)})
    images, labels = next(iter(data.train_dataloader()))
    assert data.augment(images, labels)[0].shape == (4, 3, 96, 96)


def test_missing_files_say_what_to_download_and_where_to_put_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        STL10(root=str(tmp_path), num_classes=10, image_size=96).prepare_data()
    for part in ("data.download=true", "data.root", "stl10_binary.tar.gz", "train_X.bin"):
        assert part in str(error.value)


def test_a_missing_fold_file_is_named_only_when_a_fold_is_asked_for(folder):
    (folder / "fold_indices.txt").unlink()
    ready(folder)
    with pytest.raises(FileNotFoundError, match=r"fold_indices\.txt"):
        ready(folder, fold=1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train_X.bin", lambda old: old[:-1]),
        ("test_X.bin", lambda old: old[: -stl10.IMAGE_BYTES]),
        ("train_y.bin", lambda old: old[:-3]),
        ("test_y.bin", lambda old: b"\x00" + old[1:]),
    ],
    ids=["part of an image", "an image", "labels", "label 0"],
)
def test_a_truncated_or_altered_file_is_refused(folder, name, content):
    path = folder / name
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{name[:-6]}_[Xy]\.bin is truncated or altered"):
        ready(folder)


@pytest.mark.parametrize("line", ["1 2 x", "0 40", ""])
def test_a_fold_file_with_other_than_image_numbers_is_refused(folder, line):
    (folder / "fold_indices.txt").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"fold_indices\.txt is truncated or altered: line 1"):
        ready(folder, fold=0)


def test_files_as_long_as_the_official_ones_must_have_the_official_checksum(folder, monkeypatch):
    monkeypatch.setattr(stl10, "OFFICIAL_COUNT", {"train": TRAIN, "test": TEST})
    with pytest.raises(ValueError, match=r"train_X\.bin is truncated or altered: its MD5"):
        ready(folder)
    ready(folder, checksum=False)
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.glob("*.bin")}
    for name in ("train_list", "test_list"):
        known = [[file, sums.get(file, md5)] for file, md5 in getattr(datasets.STL10, name)]
        monkeypatch.setattr(datasets.STL10, name, known)
    ready(folder)


def test_files_of_your_own_are_read_with_a_warning(folder):
    with pytest.warns(UserWarning, match=r"40 train images where STL10 has 5,000"):
        ready(folder)


def test_validation_is_carved_from_the_fold(folder):
    data = ready(folder, fold=2, val_size=2, batch_size=2)
    official = [int(x) for x in (folder / "fold_indices.txt").read_text().splitlines()[2].split()]
    both = torch.cat([data.train_set.images, data.val_set.images])[:, 2, 0, 0]
    assert sorted(both.tolist()) == sorted(official)
