"""CIFAR: the official files where they are at hand, files in their format made by the test elsewhere."""

import hashlib
import multiprocessing
import pickle
import shutil
import socket
import tarfile
import threading
import time

import numpy as np
import pytest
import torch
from torchvision import datasets

from src.data import files, official
from src.data.cifar import CIFAR10, CIFAR100
from src.data.stl10 import STL10
from tests.conftest import DATASETS, needs_cifar10, serving


def ready(root, kind=CIFAR10, **options):
    data = kind(**{"root": str(root), "num_classes": 10, "image_size": 32, "batch_size": 8, "download": True} | options)
    data.prepare_data()
    data.setup()
    return data


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write(root, monkeypatch, source, key, classes):
    """The files of `source` in their official format, two images a class; torchvision knows their checksums."""
    folder, random, labels = root / source.base_folder, np.random.default_rng(0), [*range(classes)] * 2
    folder.mkdir(parents=True)
    for name in ("train_list", "test_list"):
        paths = [folder / file for file, _ in getattr(source, name)]
        for path in paths:
            data = random.integers(0, 256, (len(labels), 3072), np.uint8)
            path.write_bytes(pickle.dumps({"data": data, key: labels, "coarse_labels": [0] * len(labels)}))
        monkeypatch.setattr(source, name, [[path.name, md5(path)] for path in paths])
    meta = folder / source.meta["filename"]
    meta.write_bytes(pickle.dumps({source.meta["key"]: [f"class {i}" for i in range(classes)]}))
    monkeypatch.setattr(source, "meta", source.meta | {"md5": md5(meta)})
    return folder


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """CIFAR-10, 20 images a file, and its archive beside it."""
    folder = write(tmp_path / "source", monkeypatch, datasets.CIFAR10, "labels", 10)
    archive = folder.parent / datasets.CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    return folder


@pytest.fixture
def mirror(made_up):
    with serving(made_up.parent) as url:
        yield url


def test_pixels_and_labels_are_those_of_the_file(made_up):
    data = ready(made_up.parent, val_size=0)
    content = pickle.loads((made_up / "data_batch_2").read_bytes())
    images, labels = data.examples("train", range(20, 40))
    assert np.array_equal(images, content["data"].reshape(-1, 3, 32, 32))
    assert labels.tolist() == content["labels"]
    assert data.classes[3] == "class 3"
    assert (data.size("train"), data.size("test")) == (100, 20)


@pytest.mark.parametrize("kind", [CIFAR10, STL10])
def test_missing_files_say_what_to_download_and_where_to_put_it(tmp_path, kind):
    with pytest.raises(FileNotFoundError) as error:
        ready(tmp_path, kind, image_size=96, download=False)
    source = kind.source
    for part in ("data.download=true", "data.root", source.filename, str(tmp_path / source.base_folder)):
        assert part in str(error.value)


def test_a_damaged_file_is_named(made_up):
    path = made_up / "data_batch_3"
    path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(ValueError, match=r"data_batch_3 is truncated or altered.*data\.download=true"):
        ready(made_up.parent)


def test_files_are_hashed_once_and_again_only_when_they_change(made_up, monkeypatch):
    hashed = []
    monkeypatch.setattr(files, "check_integrity", lambda path, md5: hashed.append(path) or True)
    for _ in range(2):
        ready(made_up.parent)
    assert len(hashed) == 7
    shutil.copy(made_up / "data_batch_1", made_up / "test_batch")
    ready(made_up.parent)
    assert hashed[7:] == [str(made_up / "test_batch")]


def test_what_is_missing_is_fetched_from_the_mirror_and_what_is_altered_stays(made_up, mirror, tmp_path):
    fetched = tmp_path / "new" / made_up.name / "test_batch"
    for _ in range(2):
        assert ready(tmp_path / "new", mirror=mirror, val_size=0).size("train") == 100
        assert md5(fetched) == md5(made_up / "test_batch")
        fetched.unlink()
    fetched.write_bytes(b"of my own")
    (fetched.parent / "data_batch_1").unlink()  # is fetched once more
    with pytest.raises(ValueError, match="test_batch is truncated or altered"):
        ready(tmp_path / "new", mirror=mirror)
    assert fetched.read_bytes() == b"of my own"
    assert md5(fetched.parent / "data_batch_1") == md5(made_up / "data_batch_1")
    assert {path.name for path in (tmp_path / "new").iterdir()} == {made_up.name, datasets.CIFAR10.filename}


def test_an_archive_that_lies_there_is_unpacked_without_asking_anybody(made_up, tmp_path, monkeypatch):
    monkeypatch.setattr(official, "_no_answer", None)
    shutil.copy(made_up.parent / datasets.CIFAR10.filename, tmp_path)
    assert ready(tmp_path, val_size=0).size("train") == 100


def test_an_unreachable_mirror_and_one_with_another_archive_are_refused(made_up, mirror, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", "0" * 32)
    for url, problem in (
        (mirror, "corrupted"),
        (f"{mirror}nowhere", "File not found"),
        ("http://127.0.0.1:9", "refused"),
    ):
        what_to_do = rf"\({url}.*{problem}.*\).* data\.root .* data\.mirror=URL, or unpack cifar-10-python\.tar\.gz"
        with pytest.raises(FileNotFoundError, match=what_to_do):
            ready(tmp_path / "new", mirror=url)
        assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("silent", ["the host", "its name"])
def test_a_host_that_never_answers_is_not_waited_for(silent, tmp_path, monkeypatch):
    monkeypatch.setattr(official, "PATIENCE", 0.1)
    forever = threading.Event()
    if silent == "its name":
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: forever.wait())
    says_nothing = socket.create_server(("127.0.0.1", 0))
    with says_nothing, pytest.raises(FileNotFoundError, match=r"(no answer within 0\.1 s|timed out)\)"):
        ready(tmp_path, mirror=f"http://localhost:{says_nothing.getsockname()[1]}")
    forever.set()


def test_the_archives_are_those_that_torchvision_knows():
    for name, (url, folder) in official.OFFICIAL.items():
        known = getattr(datasets, name)
        assert (url, url.rpartition("/")[2], folder) == (known.url, known.filename, known.base_folder)


def test_the_files_are_looked_for_before_torch_is_loaded(made_up, tmp_path):
    config = {"_target_": "src.data.cifar.CIFAR10", "root": str(made_up.parent), "download": False, "mirror": None}
    official.look_for(config)
    official.look_for(None)
    official.look_for({"_target_": "mylab.data.CIFAR10"})
    with pytest.raises(FileNotFoundError, match=r"data\.download=true"):
        official.look_for(config | {"root": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r"127\.0\.0\.1:9/cifar-10-python\.tar\.gz.* data\.mirror=URL"):
        official.look_for(config | {"root": str(tmp_path), "download": True, "mirror": "http://127.0.0.1:9/"})


class Fetched(CIFAR10):
    """Notes in `root` who fetches and who has what was fetched; the one called "stuck" never comes to an end."""

    def fetch(self):
        who, fetched = multiprocessing.current_process().name, self.root / "fetched"
        if not fetched.exists():
            (self.root / f"{who}.fetches").touch()
            while who == "stuck":
                time.sleep(1)
            time.sleep(0.2)  # time for the others to come in, were they let
            fetched.touch()
        (self.root / f"{who}.has").touch()


def test_one_process_fetches_while_the_others_wait_even_for_one_that_is_killed(tmp_path):
    def start(name):
        data = Fetched(root=str(tmp_path), num_classes=10, image_size=32)
        process = multiprocessing.get_context("fork").Process(target=data.prepare_data, name=name, daemon=True)
        process.start()
        return process

    stuck = start("stuck")
    while not (tmp_path / "stuck.fetches").exists():
        time.sleep(0.01)
    others = [start(f"rank{rank}") for rank in range(3)]
    assert not list(tmp_path.glob("rank*"))
    stuck.kill()
    for process in others:
        process.join(30)
    assert [len(list(tmp_path.glob(f"rank*.{what}"))) for what in ("fetches", "has")] == [1, 3]


def test_cifar100_reads_the_fine_labels(tmp_path, monkeypatch):
    write(tmp_path, monkeypatch, datasets.CIFAR100, "fine_labels", 100)
    data = ready(tmp_path, CIFAR100, num_classes=100, val_size=0)
    assert data.examples("train", 200)[1].tolist() == [*range(100)] * 2
    assert data.classes[99] == "class 99"


@needs_cifar10
def test_the_real_cifar10_is_verified_and_read():
    data = ready(DATASETS)
    for split, count in (("train", 4500), ("val", 500), ("test", 1000)):
        assert data.examples(split, 100_000)[1].bincount().tolist() == [count] * 10
    assert data.classes[data.examples("test", [0])[1]] == "cat"
    images, labels = ready(DATASETS, val_size=0).examples("train", 10_000)
    assert data.classes[labels[0]] == "frog"
    pixels = images.double().div(255).transpose(0, 1).flatten(1)
    assert (pixels.mean(1) - torch.tensor(data.mean)).abs().max() < 2e-3
    assert (pixels.std(1) - torch.tensor(data.std)).abs().max() < 2e-3
