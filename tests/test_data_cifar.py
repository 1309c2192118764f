"""CIFAR: the official files where they are at hand, files in their format made by the test elsewhere."""

from __future__ import annotations

import hashlib
import pickle
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from torchvision import datasets

from src.data import official
from src.data.cifar import CIFAR10, CIFAR100
from tests.conftest import DATASETS, needs_cifar10


def cifar10(root, **options):
    return CIFAR10(**{"root": str(root), "num_classes": 10, "image_size": 32, "batch_size": 8} | options)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """CIFAR-10 in its official format, 20 images a file, with the checksums that torchvision would then know."""
    folder = tmp_path / "source" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [name for name, _ in [*datasets.CIFAR10.train_list, *datasets.CIFAR10.test_list]]
    for name in names:
        content = {"data": random.integers(0, 256, (20, 3072), np.uint8), "labels": list(range(10)) * 2}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    archive = tmp_path / "source" / datasets.CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, md5(folder / name)] for name in names[:5]])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [[names[5], md5(folder / names[5])]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(folder / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    return folder


@pytest.fixture
def mirror(made_up):
    handler = partial(SimpleHTTPRequestHandler, directory=str(made_up.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_pixels_and_labels_are_those_of_the_file(made_up):
    data = cifar10(made_up.parent, val_size=0)
    data.prepare_data()
    data.setup()
    content = pickle.loads((made_up / "data_batch_2").read_bytes())
    assert data.train_set.images.shape == (100, 3, 32, 32)
    assert np.array_equal(data.train_set.images[20:40].flatten(1).numpy(), content["data"])
    assert data.train_set.labels[20:40].tolist() == content["labels"]
    assert data.classes[3] == "class 3"
    assert len(data.test_set) == 20


def test_missing_files_say_what_to_download_and_where_to_put_it(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        cifar10(tmp_path).prepare_data()
    for part in ("data.download=true", "data.root", "cifar-10-python.tar.gz", str(tmp_path / "cifar-10-batches-py")):
        assert part in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_a_damaged_file_is_named(made_up, damage):
    path = made_up / "data_batch_3"
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[2000] ^= 1
    path.write_bytes(content[:-1] if damage == "truncated" else content)
    with pytest.raises(ValueError, match=r"data_batch_3 is truncated or altered.*data\.download=true"):
        cifar10(made_up.parent).prepare_data()


def test_files_are_hashed_once_and_again_only_when_they_change(made_up, monkeypatch):
    hashed = []
    monkeypatch.setattr(official, "check_integrity", lambda path, md5: hashed.append(path) or True)
    for _ in range(2):
        cifar10(made_up.parent).prepare_data()
    assert len(hashed) == 7
    (made_up / "test_batch").write_bytes(b"other")
    cifar10(made_up.parent).prepare_data()
    assert hashed[7:] == [str(made_up / "test_batch")]


def test_the_archive_is_fetched_from_the_mirror_when_asked(made_up, mirror, tmp_path):
    data = cifar10(tmp_path / "new", download=True, mirror=mirror, val_size=0)
    data.prepare_data()
    data.setup("fit")
    assert len(data.train_set) == 100


def test_a_damaged_file_is_replaced_by_the_download(made_up, mirror, tmp_path):
    shutil.copytree(made_up, tmp_path / "new" / made_up.name)
    (tmp_path / "new" / made_up.name / "test_batch").write_bytes(b"")
    cifar10(tmp_path / "new", download=True, mirror=mirror).prepare_data()
    assert md5(tmp_path / "new" / made_up.name / "test_batch") == md5(made_up / "test_batch")


def test_the_checksum_of_the_mirrors_archive_stays_the_official_one(made_up, mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded from http://127\.0\.0\.1"):
        cifar10(tmp_path / "new", download=True, mirror=mirror).prepare_data()
    assert list((tmp_path / "new").iterdir()) == []


def test_an_unreachable_mirror_says_what_to_do(made_up, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data\.mirror=URL, or put cifar-10-python\.tar\.gz"):
        cifar10(tmp_path / "new", download=True, mirror="http://127.0.0.1:9").prepare_data()


def test_cifar100_reads_the_fine_labels(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name, count in (("train", 200), ("test", 100)):
        labels = [i % 100 for i in range(count)]
        content = {"data": np.zeros((count, 3072), np.uint8), "fine_labels": labels, "coarse_labels": [0] * count}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"fine {i}" for i in range(100)]}))
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", md5(folder / "train")]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", md5(folder / "test")]])
    meta = {"filename": "meta", "key": "fine_label_names", "md5": md5(folder / "meta")}
    monkeypatch.setattr(datasets.CIFAR100, "meta", meta)
    data = CIFAR100(root=str(tmp_path), num_classes=100, image_size=32, batch_size=8, val_size=0)
    data.prepare_data()
    data.setup()
    assert data.train_set.labels.bincount().tolist() == [2] * 100
    assert data.classes[99] == "fine 99"


@needs_cifar10
def test_the_real_cifar10_is_verified_and_read():
    data = cifar10(DATASETS)
    data.prepare_data()
    data.setup()
    assert data.classes[:3] == ["airplane", "automobile", "bird"]
    assert data.train_set.labels.bincount().tolist() == [4500] * 10
    assert data.val_set.labels.bincount().tolist() == [500] * 10
    assert data.test_set.labels.bincount().tolist() == [1000] * 10
    first = int(torch.cat([data.train_set.rows, data.val_set.rows]).argsort()[0])
    labels = torch.cat([data.train_set.labels, data.val_set.labels])
    assert data.classes[labels[first]] == "frog"
    assert data.classes[data.test_set.labels[0]] == "cat"


@needs_cifar10
def test_the_real_cifar10_has_the_mean_and_deviation_that_are_written_down():
    data = cifar10(DATASETS, val_size=0)
    data.setup("fit")
    pixels = data.train_set.images[::5].double().div(255).transpose(0, 1).flatten(1)
    assert (pixels.mean(1) - torch.tensor(data.mean)).abs().max() < 2e-3
    assert (pixels.std(1) - torch.tensor(data.std)).abs().max() < 2e-3
