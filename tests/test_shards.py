"""Shards in litdata's format: written and read again, the order of an epoch, resuming, storages, and bad ones."""

import json
import shutil
import signal
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from src.data import shards as module
from src.data.decode import decode
from src.data.digits import Digits
from src.data.folder import ImageFolder
from src.data.samplers import WINDOW, TrainSampler
from src.data.shards import Shards, write_shards
from src.data.source import MapDataset
from src.data.streaming import ReadError
from tests.conftest import assert_equal_runs, run_well
from tests.test_resume import ARGUMENTS, signal_after_epoch, start

pytest.importorskip("litdata", reason="litdata is an optional extra: pip install -e .[shards]")

OPTIONS = {"num_classes": None, "image_size": 8, "batch_size": 5, "mean": "half"}
CLASSES = ["ant", "bee", "cat"]
COUNTS = {"train": 40, "val": 4, "test": 6}  # images of each class


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of several sizes, no two alike."""
    root = tmp_path_factory.mktemp("images")
    for split, count in COUNTS.items():
        for number in range(3 * count):
            drawn = np.random.default_rng([number, len(split)])
            size = tuple(drawn.integers(10, 20, 2))
            path = root / split / CLASSES[number % 3] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return root


def folder_of(images: Path, **options: str) -> ImageFolder:
    cache = str(images.parent / "cache")
    return ImageFolder(root=str(images), cache_dir=cache, mode="stream", **options, **OPTIONS)


@pytest.fixture(scope="module")
def written(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those as shards of some ten images each."""
    place = tmp_path_factory.mktemp("shards") / "written"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 8000)
        write_shards(folder_of(images), place)
    return place


def ready(place: Path | str, cache: Path | str = "", **options) -> Shards:
    data = Shards(root=str(place), cache_dir=str(cache), **OPTIONS | options)
    data.prepare_data()
    data.setup()
    return data


def everything(data, split):
    images, labels = data.examples(split, data.size(split))
    return Counter((image.numpy().tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


# Written and read


def test_the_files_of_a_folder_are_written_as_they_are_with_their_labels_and_class_names(images, written):
    from litdata import StreamingDataset

    for split, count in COUNTS.items():
        stream = StreamingDataset(str(written / split))
        items = Counter((bytes(file), label) for file, label in (stream[i] for i in range(len(stream))))
        paths = (images / split).rglob("*.jpg")
        assert items == Counter((path.read_bytes(), CLASSES.index(path.parent.name)) for path in paths)
        assert len(stream) == 3 * count
    assert ready(written).classes == CLASSES


@pytest.mark.parametrize("mode", ["stream", "memory"])
def test_the_shards_of_a_folder_hold_its_images_and_splits(images, written, mode):
    data = ready(written, mode=mode)
    for split, count in COUNTS.items():
        paths = (images / split).rglob("*.jpg")
        files = Counter((decode(path, 8).tobytes(), CLASSES.index(path.parent.name)) for path in paths)
        assert everything(data, split) == files
        assert data.size(split) == 3 * count


def test_images_are_in_random_order_so_that_a_chunk_has_all_classes(written):
    labels = ready(written).sources["train"].targets
    assert all(len(set(labels[i : i + 10])) == 3 for i in range(0, 120, 10))


def test_a_data_set_without_files_is_written_as_png_bit_for_bit(tmp_path):
    digits = Digits(**OPTIONS | {"num_classes": 10, "val_size": 0})
    digits.setup()
    assert write_shards(digits, tmp_path / "digits") == {"train": 1437, "test": 360}
    data = ready(tmp_path / "digits", val_size=0)
    assert all(everything(data, split) == everything(digits, split) for split in ("train", "test"))


def test_no_more_images_are_written_than_the_limit_says_and_as_many_of_each_class(tmp_path):
    digits = Digits(**OPTIONS | {"num_classes": 10, "limit": 50})
    assert write_shards(digits, tmp_path / "few") == {"train": 50, "test": 50}
    data = ready(tmp_path / "few", val_size=0)
    assert data.class_counts().sum() == 50
    assert (data.class_counts() - 5).abs().max() <= 1


def test_a_source_of_several_labels_and_no_test_images_keeps_both_and_they_are_carved_as_ever(tmp_path):
    class Several(torch.utils.data.Dataset):
        classes = CLASSES

        def __len__(self):
            return 30

        def __getitem__(self, index):
            return torch.full((3, 8, 8), index, dtype=torch.uint8), torch.tensor([index % 2, 1, 0])

    source = MapDataset(source=Several(), mode="stream", **OPTIONS)
    assert write_shards(source, tmp_path / "several") == {"train": 30}
    data = ready(tmp_path / "several", test_size=6, val_size=4)
    assert (data.multilabel, data.classes) == (True, CLASSES)
    parts = [data.examples(split, data.size(split)) for split in ("train", "val", "test")]
    assert [len(labels) for _, labels in parts] == [20, 4, 6]
    shown, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    assert sorted(shown[:, 0, 0, 0].tolist()) == list(range(30))
    assert torch.equal(labels, torch.stack([shown[:, 0, 0, 0] % 2, torch.ones(30), torch.zeros(30)], 1))


def test_pictures_of_every_mode_and_those_on_their_side_are_what_the_source_itself_shows(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    colour, exif, file = Image.fromarray(drawn), Image.Exif(), BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    colour.save(file, "JPEG", exif=exif)
    wide, bright = drawn[:, :, 0].astype(np.uint16) * 256, drawn[:, :, 0].astype(np.float32) / 255
    pictures = [colour.convert(mode) for mode in ("CMYK", "RGBA", "P", "1", "YCbCr")]
    pictures += [Image.open(file), Image.fromarray(wide), Image.fromarray(bright)]

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(pictures)

        def __getitem__(self, index):
            return pictures[index].copy(), index

    held = {"test_size": 1, "val_size": 0, "batch_size": 1}
    source = MapDataset(source=Pictures(), mode="stream", **OPTIONS | held)
    write_shards(source, tmp_path / "pictures")
    source.setup()
    data = ready(tmp_path / "pictures", **held)
    both = (sum((everything(part, split) for split in ("train", "test")), Counter()) for part in (source, data))
    assert next(both) == next(both)


@pytest.mark.parametrize("form", ["dict of arrays", "pairs of pictures"])
def test_shards_that_litdata_itself_wrote_are_read_and_split(tmp_path, form):
    from litdata.streaming.cache import Cache

    cache = Cache(str(tmp_path / "foreign"), chunk_size=7)
    for i in range(30):
        picture = np.full((8, 8, 3), i, np.uint8)
        cache[i] = {"image": picture, "label": i % 3} if "dict" in form else (Image.fromarray(picture), i % 3)
    cache.done()
    cache.merge()
    data = ready(tmp_path / "foreign", test_size=6, val_size=3)
    assert (data.classes, [data.size(split) for split in COUNTS]) == (["0", "1", "2"], [21, 3, 6])
    shown, labels = (torch.cat(part) for part in zip(*(data.examples(s, 30) for s in COUNTS), strict=True))
    assert sorted(shown[:, 0, 0, 0].tolist()) == list(range(30))
    assert torch.equal(labels, shown[:, 0, 0, 0].long() % 3)


def test_nothing_half_written_stays_and_nothing_is_overwritten(images, tmp_path):
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    data = folder_of(folder)
    assert data.listing
    (folder / "test/cat/2.jpg").unlink()
    with pytest.raises(ReadError, match=r"cat/2\.jpg cannot be read: .*; data\.broken=skip leaves out such images"):
        write_shards(data, tmp_path / "out")
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError, match=r"out=.*out is there already; choose a new folder"):
        write_shards(folder_of(folder), tmp_path / "out")


def test_files_that_cannot_be_read_are_left_out_with_their_labels_where_the_folder_skips_them(images, tmp_path):
    folder = Path(shutil.copytree(images, tmp_path / "images"))
    for number in (3, 40):
        path = folder / f"train/{CLASSES[number % 3]}/{number}.jpg"
        path.write_bytes(path.read_bytes()[:-200])  # its head is whole
    with pytest.raises(ReadError, match="cannot be read"):
        write_shards(folder_of(folder), tmp_path / "all")
    with pytest.warns(UserWarning, match=r"left out: .*(ant/3|bee/40)\.jpg cannot be read"):
        assert write_shards(folder_of(folder, broken="skip"), tmp_path / "out") == {"train": 118, "val": 12, "test": 18}
    whole = [path for path in (folder / "train").rglob("*.jpg") if path.stem not in ("3", "40")]
    files = Counter((decode(path, 8).tobytes(), CLASSES.index(path.parent.name)) for path in whole)
    assert everything(ready(tmp_path / "out"), "train") == files


@pytest.mark.slow
def test_the_command_writes_what_the_next_command_reads(images, tmp_path):
    output = run_well("-m", "src.shards", f"data.root={images}", f"out={tmp_path}/out", cwd=tmp_path)
    assert output.splitlines()[-1] == f"120 train images, 12 val images, 18 test images: {tmp_path}/out"
    assert ready(tmp_path / "out").size("train") == 120


# The order of an epoch


def shown(data, epoch=0, done=0):
    """The batches of an epoch from some batch on, as a resumed training asks for them."""
    data._position = lambda: (epoch, done)
    return list(data.train_dataloader())


@pytest.mark.parametrize("done", [0, 7])
def test_the_batches_of_an_epoch_and_of_its_rest_are_the_same_with_any_number_of_workers(written, done):
    data = ready(written)
    assert len(data.sources["train"].ends) > WINDOW
    whole = shown(data, epoch=1)
    assert len(whole) == 24
    seen = Counter(image.numpy().tobytes() for images, _ in whole for image in images)
    assert set(seen.values()) == {1}
    for workers in (0, 2):
        batches = shown(ready(written, num_workers=workers), epoch=1, done=done)
        assert len(batches) == 24 - done
        pairs = zip(whole[done:], batches, strict=True)
        assert all(torch.equal(a, b) for batch, other in pairs for a, b in zip(batch, other, strict=True))
    assert not torch.equal(whole[0][0], shown(data, epoch=2)[0][0])


def test_two_processes_share_an_epoch_without_an_image_twice(written):
    data = ready(written)._sets["train"]
    alone, first, second = (
        list(TrainSampler(data, lambda: (3, 0), 5, rank=rank, num_replicas=world, seed=1))
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    assert sorted(first + second) == list(range(120))
    assert [index for pair in zip(first, second, strict=True) for index in pair] == alone


@pytest.mark.filterwarnings("ignore:.*max_cache_size")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_storage_is_asked_for_each_chunk_once_an_epoch_though_the_cache_holds_few(
    written, tmp_path, monkeypatch, workers
):
    from litdata.streaming.downloader import LocalDownloaderWithCache

    fetch = LocalDownloaderWithCache.download_file

    def counted(self, remote, local):
        if not Path(local).exists():
            with open(tmp_path / "fetched", "a") as file:
                file.write(f"{Path(remote).name}\n")
        return fetch(self, remote, local)

    monkeypatch.setattr(LocalDownloaderWithCache, "download_file", counted)
    data = ready(f"local:{written}", tmp_path / "cache", num_workers=workers, cache_size="40KB", val_size=0)
    pairs = zip(shown(data), shown(ready(written)), strict=True)
    assert all(torch.equal(a, b) for batch, other in pairs for a, b in zip(batch, other, strict=True))
    if not workers:  # two may ask twice, where one lets a chunk go that the other is just to take
        fetched = Counter((tmp_path / "fetched").read_text().split())
        names = [path.name for path in (written / "train").glob("chunk*")]
        assert {fetched[name] for name in names if name != "chunk-0-0.bin"} == {1}, (
            "the other sets have a first chunk too"
        )


def test_folds_of_shards_are_disjoint_cover_all_and_are_stratified(written):
    with pytest.warns(UserWarning, match="validation images"):
        folds = [ready(written, folds=3, fold=fold) for fold in range(3)]
    assert sum((everything(data, "val") for data in folds), Counter()) == everything(ready(written), "train")
    assert all(sorted(data.examples("val", 40)[1].bincount().tolist()) == [13, 13, 14] for data in folds)


# Resuming


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_stopped_in_mid_epoch_and_one_that_was_killed_go_on_to_the_same_bits(tmp_path, workers):
    digits = Digits(num_classes=10, image_size=32)
    digits.setup()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", 40_000)  # some thirty chunks
        write_shards(digits, tmp_path / "shards")
    data = ["data=shards", f"data.root={tmp_path}/shards", f"data.num_workers={workers}", "data.image_size=32"]
    arguments = [*ARGUMENTS, *data, f"data.cache_dir={tmp_path}/cache"]
    run_well("-m", "src.train", *arguments, f"hydra.run.dir={tmp_path}/whole")
    for name, how, delay in (("stopped", signal.SIGTERM, 0.2), ("killed", signal.SIGKILL, 0.2)):
        folder = tmp_path / name
        signal_after_epoch(start(*arguments, f"hydra.run.dir={folder}"), 1, how, delay)
        step = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"]
        assert (step % 112 != 0) == (name == "stopped"), "in mid-epoch"
        assert 2 * 112 <= step < 5 * 112
        run_well("-m", "src.train", f"resume={folder}", f"data.cache_dir={tmp_path}/cache")
        assert_equal_runs(folder, tmp_path / "whole")


# Bad input


class Trap:
    """Makes a file when it is unpickled."""

    sprung = Path()

    def __reduce__(self):
        return Path.touch, (self.sprung,)


def broken(tmp_path: Path, kind: str) -> Path:
    from litdata.streaming.cache import Cache

    place = tmp_path / "bad"
    if kind == "nowhere":
        return place
    place.mkdir()
    Trap.sprung = place / "sprung"
    if kind == "pictures":
        Image.new("RGB", (8, 8)).save(place / "1.jpg")
    elif kind == "other index":
        (place / "index.json").write_text(json.dumps({"version": 2, "shards": []}))
    elif kind == "half an index":
        (place / "index.json").write_text('{"chunks": [')
    else:
        cache = Cache(str(place), chunk_size=5)
        for i in range(10):
            kinds = {"text": f"word {i}", "bytes": (b"no image", 0), "words": ("a", "b"), "pickle": (Trap(), 0)}
            cache[i] = kinds[kind]
        cache.done()
        cache.merge()
    return place


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nowhere", r"data\.root=\S+ has no shards that litdata can read \(.*\); python -m src\.shards writes some"),
        ("pictures", r"has no shards that litdata can read \(\w+: .*index\.json"),
        ("other index", r"has no shards that litdata can read"),
        ("half an index", r"has no shards that litdata can read"),
        ("pickle", r"\(ValueError: its items hold a pickle, and reading that may run code\)"),
        ("text", r"an item must be \(image, label\), not str"),
        ("words", r"an image must be PIL's, .* not str"),
        ("bytes", r"Shard, the train images: b'no image'... is no image file"),
    ],
)
def test_a_folder_of_another_format_gets_one_message(tmp_path, kind, message):
    with pytest.raises(ValueError, match=message):
        ready(broken(tmp_path, kind))
    assert not (tmp_path / "bad/sprung").exists()


def test_without_litdata_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "litdata", None)
    with pytest.raises(ModuleNotFoundError, match=r"shards need litdata: pip install -e '\.\[shards\]'"):
        ready(tmp_path)
