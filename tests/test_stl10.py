"""STL10's binary files, written by the test in their official layout: planes of columns, labels from 1."""

import hashlib
import tarfile

import numpy as np
import pytest
import torch
from torchvision import datasets

from src import cli
from src.data import stl10
from src.data.augment import RandomCrop
from src.data.stl10 import STL10
from src.runs.record import read_results
from src.train import main
from tests.conftest import SILENT, composed, serving

TRAIN, TEST = 40, 20
FOLDS = np.random.default_rng(0).permutation(TRAIN).reshape(10, 4).tolist()
NAMES = [f"class{i}" for i in range(10)]

pytestmark = pytest.mark.filterwarnings("ignore:.*where STL10 has")


def pictures(count):
    """Images (count, 3, 96, 96): the top left quarter red, the top right one green, blue is their number."""
    images = np.zeros((count, 3, 96, 96), np.uint8)
    images[:, 0, :48, :48] = 255
    images[:, 1, :48, 48:] = 255
    images[:, 2] = np.arange(count)[:, None, None]
    return images


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for split, count in (("train", TRAIN), ("test", TEST)):
        pictures(count).swapaxes(2, 3).tofile(folder / f"{split}_X.bin")  # columns first
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{split}_y.bin")
    (folder / "fold_indices.txt").write_text("".join(" ".join(map(str, fold)) + " \n" for fold in FOLDS))
    (folder / "class_names.txt").write_text("\n".join(NAMES) + "\n")
    return folder


def ready(folder, **options):
    data = STL10(**{"root": str(folder.parent), "num_classes": 10, "image_size": 96, "batch_size": 4} | options)
    data.prepare_data()
    data.setup()
    return data


def test_images_of_your_own_come_out_upright_with_their_labels_and_a_warning(folder):
    with pytest.warns(UserWarning, match=r"40 train images where STL10 has 5,000"):
        data = ready(folder, val_size=0)
    for split, count in (("train", TRAIN), ("test", TEST)):
        images, labels = data.examples(split, 100)
        assert np.array_equal(images, pictures(count))
        assert labels.tolist() == [i % 10 for i in range(count)]
    assert data.classes == NAMES


@pytest.mark.parametrize("fold", range(10))
def test_the_fold_is_the_official_one_and_validation_is_carved_from_it(folder, fold):
    data = ready(folder, fold=fold, val_size=2, batch_size=2)
    images, labels = map(torch.cat, zip(*(data.examples(split, 100) for split in ("train", "val")), strict=True))
    numbers = images[:, 2, 0, 0].tolist()
    assert sorted(numbers) == sorted(FOLDS[fold])
    assert labels.tolist() == [i % 10 for i in numbers]
    assert (data.size("val"), data.size("test")) == (2, TEST)


def test_with_folds_the_fold_is_one_of_those_of_all_images(folder):
    data = ready(folder, folds=4, fold=3)
    assert [data.size(split) for split in ("train", "val", "test")] == [TRAIN * 3 // 4, TRAIN // 4, TEST]


@pytest.mark.parametrize("fold", [-1, 10, 0.5, "all"])
def test_a_fold_out_of_range_is_refused(folder, fold):
    with pytest.raises(ValueError, match=rf"data\.fold={fold} is out of range; choose 0 to 9"):
        ready(folder, fold=fold)


def test_at_224_px_the_image_is_resized_to_256_and_cropped(folder):
    assert ready(folder).preprocess.spec["resize"] is None
    data = ready(folder, image_size=224, augment={"crop": RandomCrop(12, "reflect", size=224)})
    assert data.preprocess.spec["resize"] == 256
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape[-1] == 96
    out, _ = data.augment(images, labels)
    assert out.shape == data.preprocess(images).shape == (4, 3, 224, 224)
    # the red quarter ends at 128 of 256, so between 96 and 128 of a random crop and at 112 of the centre
    random, centre = ((x[:, 0, 40] > x[:, 0, 40].mean()).sum(1) for x in (out, data.preprocess(images)))
    assert ((random >= 96) & (random <= 128)).all()
    assert len(set(random.tolist())) > 1
    assert centre.tolist() == [112] * 4


def test_the_files_of_names_and_folds_may_be_missing_unless_a_fold_is_asked_for(folder):
    for path in folder.glob("*.txt"):
        path.unlink()
    assert ready(folder).classes == stl10.CLASSES
    with pytest.raises(FileNotFoundError, match=r"missing: fold_indices\.txt"):
        ready(folder, fold=1, download=False)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train_X.bin", lambda old: old + b"\x00"),
        ("test_X.bin", lambda old: old[: -stl10.IMAGE_BYTES]),
        ("train_y.bin", lambda old: old[:-3]),
        ("test_y.bin", lambda old: b"\x00" + old[1:]),
        ("fold_indices.txt", lambda old: b"1 2 x\n"),
        ("fold_indices.txt", lambda old: b"0 40\n"),
        ("fold_indices.txt", lambda old: b""),
    ],
)
def test_a_truncated_or_altered_file_is_refused(folder, name, content):
    (folder / name).write_bytes(content((folder / name).read_bytes()))
    with pytest.raises(ValueError, match=rf"{name[:5]}\w+\.\w+ is truncated or altered"):
        ready(folder, fold=0)


def test_files_as_long_as_the_official_ones_must_have_the_official_checksum(folder, monkeypatch):
    monkeypatch.setattr(stl10, "OFFICIAL_COUNT", {"train": TRAIN, "test": TEST})
    with pytest.raises(ValueError, match=r"train_X\.bin is truncated or altered: its MD5.* data\.checksum=false"):
        ready(folder)
    ready(folder, checksum=False)
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.glob("*.bin")}
    for name in ("train_list", "test_list"):
        known = [[file, sums.get(file, md5)] for file, md5 in getattr(datasets.STL10, name)]
        monkeypatch.setattr(datasets.STL10, name, known)
    ready(folder)


def test_the_command_downloads_the_archive_and_trains(folder, tmp_path, monkeypatch):
    archive = folder.parent / datasets.STL10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(datasets.STL10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    options = ["trainer=cpu", "trainer.max_epochs=1", "data.batch_size=4", f"data.root={tmp_path}/new"]
    options += ["model.network.hidden_units=4", *SILENT, f"hydra.run.dir={tmp_path}/run"]
    with serving(folder.parent) as url:
        monkeypatch.setattr("sys.argv", ["train", "data=stl10", f"data.mirror={url}", *options])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        cli.run(main, "train")
    assert read_results(tmp_path / "run")["status"] == "done"
    assert (tmp_path / "new/stl10_binary/train_X.bin").read_bytes() == (folder / "train_X.bin").read_bytes()


def test_the_default_training_has_as_many_steps_as_that_of_cifar10_and_an_experiment_its_own():
    steps = {}
    for name, images in (("stl10", 5000), ("cifar10", 50_000)):
        cfg = composed(f"data={name}", "trainer=cpu")
        steps[name] = int(0.9 * images) // cfg.data.batch_size * cfg.trainer.max_epochs
    assert steps["stl10"] == pytest.approx(steps["cifar10"], rel=0.01)
    assert composed("experiment=stl10").trainer.max_epochs == 500
    assert composed("data=stl10", "trainer.max_epochs=3").trainer.max_epochs == 3
