"""Folders of images: layouts, formats, the cache, and what can be wrong with them."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.data import folder as folder_module
from src.data.folder import ImageFolder, decode

SPLITS = ("train", "val", "test")
COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


def paint(path, colour, size=(20, 20), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def fill(root, count=10):
    """Class folders of images in the class's colour, no two alike."""
    for name, colour in COLOURS.items():
        for i in range(count):
            paint(root / name / f"{i}.png", tuple(max(i, level) for level in colour), (20 + i, 25))
    return root


@pytest.fixture
def root(tmp_path):
    return fill(tmp_path / "images")


def ready(root, **options):
    options = {"num_classes": None, "image_size": 8, "batch_size": 4} | options
    data = ImageFolder(root=str(root), cache_dir=str(root.parent / "cache"), **options)
    data.prepare_data()
    data.setup()
    return data


def cached(root):
    return sorted((root.parent / "cache").iterdir())


def counts(data, splits=SPLITS):
    """The images of each class in each split; the colours must match the labels."""
    for split in splits:
        images, labels = data.examples(split, 1000)
        assert torch.equal(2 - images[:, :, 4, 4].long().argmax(1), labels)  # channel 2 is blue, class 0
        yield labels.bincount().tolist()


# Layouts


@pytest.mark.parametrize("folder", [".", "train"])
def test_class_folders_alone_or_in_train_are_split_three_ways_stratified(tmp_path, folder):
    fill(tmp_path / "images" / folder)
    data = ready(tmp_path / "images", val_size=6, test_size=6)
    assert list(counts(data)) == [[6] * 3, [2] * 3, [2] * 3]
    assert data.classes == ["blue", "green", "red"]
    assert data.num_classes == 3


def test_the_carved_test_images_do_not_depend_on_split_seed(root):
    first, second = (ready(root, split_seed=seed).examples("test", 3)[0] for seed in (0, 1))
    assert torch.equal(first, second)


def test_train_val_and_test_folders_are_used_as_they_are(tmp_path):
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        fill(tmp_path / "images" / split, count)
    assert list(counts(ready(tmp_path / "images", val_size=0.5))) == [[5] * 3, [2] * 3, [3] * 3]


def test_images_in_subfolders_are_read_hidden_files_skipped_and_others_left_out_with_a_warning(root):
    for suffix in ("jpg", "jpeg", "webp", "JPG"):
        paint(root / "red" / "more" / f"deep.{suffix}", COLOURS["red"])
    for name in (".hidden", ".hidden.png", "notes.txt"):
        (root / "red" / name).write_text("")
    with pytest.warns(UserWarning, match=r"ignored 1 files .* no images, e\.g\. .*notes\.txt"):
        data = ready(root, val_size=0)
    train, test = counts(data, ("train", "test"))
    assert [a + b for a, b in zip(train, test, strict=True)] == [10, 10, 14]


# Formats


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "LA", "1", "I;16"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    grey = 255 if mode == "1" else 200
    if mode == "I;16":
        image = Image.fromarray(np.full((20, 30), grey * 256, np.uint16))
    else:
        image = Image.new("RGB", (30, 20), (grey,) * 3).convert(mode, palette=Image.Palette.ADAPTIVE)
    image.save(path)
    pixels = decode(path, 8)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(pixels, np.full((3, 8, 8), grey), atol=1)


def test_one_channel_keeps_the_brightness_of_the_images_in_a_cache_of_its_own(root):
    ready(root)
    images, labels = ready(root, channels=1, val_size=0).examples("train", 30)
    assert images.shape == (27, 1, 8, 8)
    expected = torch.tensor(
        [Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0)) for colour in COLOURS.values()]
    )
    assert ((images[:, 0, 4, 4] - expected[labels]).abs() <= 9).all()  # `fill` lights the dark channels up to 9
    assert len(cached(root)) == 2


def test_an_image_with_exif_orientation_stands_upright(tmp_path):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = 255  # white above
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter to the right
    Image.fromarray(np.rot90(upright)).save(tmp_path / "image.jpg", exif=exif, quality=95)
    pixels = decode(tmp_path / "image.jpg", 16)
    assert pixels[:, :6].min() > 200
    assert pixels[:, 10:].max() < 55


def test_transparent_pixels_show_white(tmp_path):
    Image.new("RGBA", (9, 9), (200, 0, 0, 0)).save(tmp_path / "image.png")
    assert (decode(tmp_path / "image.png", 8) == 255).all()


@pytest.mark.parametrize("size", [(40, 16), (16, 40), (4, 4), (16, 16), (3000, 2000)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])  # a large JPEG is not decoded in full
def test_the_shorter_side_is_resized_and_the_centre_cut(tmp_path, size, suffix):
    width, height = size
    wave = np.add.outer(np.sin(np.linspace(0, 5, height)), np.cos(np.linspace(0, 7, width)))
    Image.fromarray(((wave + 2) * 60).astype(np.uint8)).save(tmp_path / f"image.{suffix}", quality=95)
    left, top, side = (width - min(size)) // 2, (height - min(size)) // 2, min(size)
    with Image.open(tmp_path / f"image.{suffix}") as image:
        square = image.crop((left, top, left + side, top + side)).resize((16, 16), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(decode(tmp_path / f"image.{suffix}", 16), np.tile(square, (3, 1, 1)), atol=3)


# The cache


def test_the_cache_is_used_again_and_memory_mapped(root, monkeypatch):
    first = ready(root)
    monkeypatch.setattr(folder_module, "decode", None)
    assert torch.equal(first.examples("train", 30)[0], ready(root).examples("train", 30)[0])
    (cache,) = cached(root)
    assert str(cache) in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize(
    ("change", "count"),
    [
        (lambda red: paint(red / "new.png", (250, 0, 0)), 31),
        (lambda red: paint(red / "3.png", (250, 0, 0)), 30),
        (lambda red: (red / "3.png").unlink(), 29),
        (lambda red: os.utime(red / "3.png", (1, 1)), 30),
    ],
    ids=["add", "repaint", "remove", "touch"],
)
def test_the_cache_is_rebuilt_when_files_change(root, change, count):
    ready(root)
    before = cached(root)
    painted = change(root / "red") is not None
    data = ready(root, val_size=0)
    assert len(cached(root)) == 1
    assert cached(root) != before
    both = torch.cat([data.examples(split, 100)[0] for split in ("train", "test")])
    assert (len(both), bool((both == 250).any())) == (count, painted)


def test_of_two_that_prepare_at_once_one_decodes_and_the_other_waits_for_it(root, monkeypatch):
    decoded = []

    def slow(path, *options):
        decoded.append(path)
        time.sleep(0.02)
        return decode(path, *options)

    monkeypatch.setattr(folder_module, "decode", slow)
    with ThreadPoolExecutor(2) as pool:  # a file lock keeps threads apart as it does processes
        list(pool.map(ready, [root, root]))
    assert len(decoded) == 30


def test_another_size_has_a_cache_of_its_own(root):
    for side, options in ((8, {}), (12, {"resize": 12}), (16, {"image_size": 16})):
        assert ready(root, **options).examples("train", 1)[0].shape[-1] == side
    assert len(cached(root)) == 3


# Mistakes


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], FileNotFoundError, r"does not exist; set data\.root .*train/<class>"),
        (["./"], ValueError, "has no class folders; a classifier needs at least two"),
        (["red/0.png"], ValueError, r"has one class \(red\); a classifier needs at least two"),
        (["blue/", "red/"], FileNotFoundError, r"no images in .*images\. Readable are \.jpg"),
        (["blue/0.png", "red/0.png", "white/"], FileNotFoundError, r"no images in .* \(white\)"),
        (["train/b/0.png", "train/r/0.png", "test/w/0.png"], ValueError, "has classes that .*train lacks: w"),
    ],
)
def test_a_folder_that_is_no_data_set_is_told_what_is_wrong_with_it(tmp_path, names, error, message):
    for name in names:
        if name.endswith("/"):
            (tmp_path / "images" / name).mkdir(parents=True)
        else:
            paint(tmp_path / "images" / name, (0, 0, 0))
    with pytest.raises(error, match=message):
        ready(tmp_path / "images")


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut off"])
def test_broken_images_are_named_and_leave_no_cache_behind(root, content):
    good = paint(root.parent / "good.jpg", (9, 9, 9), (200, 200))
    (root / "red" / "broken.jpg").write_bytes(good.read_bytes()[:700] if content is None else content)
    with pytest.raises(ValueError, match=r"1 of 31 images cannot be read: .*broken\.jpg"):
        ready(root)
    assert cached(root) == []


def test_a_test_size_that_leaves_nothing_is_refused(root):
    with pytest.raises(ValueError, match=r"data\.test_size=0 of 30 training images"):
        ready(root, test_size=0)
