"""Folders of images: layouts, formats, the cache, and what can be wrong with them."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from src.data import folder as folder_module
from src.data.folder import ImageFolder, decode
from src.data.listing import count_classes, list_images

COLOURS = {"blue": (0, 0, 200), "green": (0, 200, 0), "red": (200, 0, 0)}


def paint(path, colour, size=(20, 20), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def fill(root, count=10, colours=COLOURS):
    for name, colour in colours.items():
        for i in range(count):
            paint(root / name / f"{i}.png", colour, (20 + i, 25))
    return root


def ready(root, cache, **options):
    options = {"num_classes": 3, "image_size": 8, "batch_size": 4} | options
    data = ImageFolder(root=str(root), cache_dir=str(cache), **options)
    data.prepare_data()
    data.setup()
    return data


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def colours_match_labels(part):
    brightest = part.images[:, :, 4, 4].long().argmax(1)  # channel 2 is blue, class 0
    return torch.equal(2 - brightest, part.labels)


# Layouts


def test_class_folders_alone_are_split_three_ways_stratified(tmp_path, cache):
    data = ready(fill(tmp_path / "images"), cache, val_size=6, test_size=6)
    parts = data.train_set, data.val_set, data.test_set
    assert [part.labels.bincount().tolist() for part in parts] == [[6] * 3, [2] * 3, [2] * 3]
    assert all(colours_match_labels(part) for part in parts)
    assert data.classes == ["blue", "green", "red"]


def test_the_carved_test_images_do_not_depend_on_split_seed(tmp_path, cache):
    root = fill(tmp_path / "images")
    for i, path in enumerate(sorted(root.rglob("*.png"))):  # no two alike
        paint(path, (8 * i, 100, 250 - 8 * i))
    first, second = (ready(root, cache, split_seed=seed) for seed in (0, 1))
    assert torch.equal(first.test_set.images, second.test_set.images)
    assert not torch.equal(first.val_set.images, second.val_set.images)


def test_train_val_and_test_folders_are_used_as_they_are(tmp_path, cache):
    root = tmp_path / "images"
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        fill(root / split, count)
    data = ready(root, cache, val_size=0.5)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [15, 6, 9]
    assert all(colours_match_labels(part) for part in (data.train_set, data.val_set, data.test_set))


def test_without_val_and_test_folders_both_are_carved_from_train(tmp_path, cache):
    data = ready(fill(tmp_path / "images" / "train").parent, cache, val_size=3, test_size=3)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [24, 3, 3]


def test_images_in_subfolders_of_a_class_belong_to_it(tmp_path, cache):
    root = fill(tmp_path / "images", 4)
    paint(root / "red" / "more" / "deep.jpg", COLOURS["red"])
    assert sum(label == 2 for _, label in list_images(root).splits["train"]) == 5


def test_other_files_are_left_out_with_a_warning_and_hidden_ones_silently(tmp_path):
    root = fill(tmp_path / "images", 2)
    (root / "red" / ".hidden").write_text("")
    (root / "red" / "notes.txt").write_text("")
    with pytest.warns(UserWarning, match=r"ignored 1 files .*notes\.txt"):
        assert len(list_images(root).splits["train"]) == 6


def test_classes_are_counted_without_importing_torch(tmp_path):
    root = fill(tmp_path / "images", 1)
    code = "import sys; from src.data.listing import count_classes; "
    code += f"print(count_classes({str(root)!r}), 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["3", "False"]
    assert count_classes(str(fill(tmp_path / "split" / "train", 1).parent)) == 3


# Formats


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "LA", "1", "I;16"])
def test_every_mode_is_read_as_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        Image.fromarray(np.full((20, 30), 200 * 256, np.uint16)).save(path)
    else:
        grey = 255 if mode == "1" else 200
        Image.new("RGB", (30, 20), (grey,) * 3).convert(mode, palette=Image.Palette.ADAPTIVE).save(path)
    pixels = decode(path, 8)
    assert pixels.shape == (3, 8, 8)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - (255 if mode == "1" else 200)).max() <= 1


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "webp", "JPG"])
def test_jpg_png_and_webp_are_read(tmp_path, suffix):
    pixels = decode(paint(tmp_path / f"image.{suffix}", (200, 100, 50)), 8)
    assert np.abs(pixels[:, 4, 4].astype(int) - (200, 100, 50)).max() < 6


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
def test_the_shorter_side_is_resized_and_the_centre_cut(tmp_path, size):
    width, height = size
    columns = np.broadcast_to(np.linspace(0, 255, width), (height, width)).astype(np.uint8)
    Image.fromarray(columns).save(tmp_path / "image.png")
    pixels = decode(tmp_path / "image.png", 16)
    assert pixels.shape == (3, 16, 16)
    side = min(size)
    ends = np.interp([(width - side) / 2, (width + side) / 2], [0, width], [0, 255])
    step = (ends[1] - ends[0]) / 16
    assert abs(pixels[0, 8, 0] - (ends[0] + step / 2)) <= step + 1
    assert abs(pixels[0, 8, -1] - (ends[1] - step / 2)) <= step + 1


def test_a_large_jpeg_decodes_to_nearly_what_a_full_decode_gives(tmp_path):
    wave = np.add.outer(np.sin(np.arange(1200) / 60), np.cos(np.arange(1600) / 45))
    Image.fromarray(((wave + 2) * 60).astype(np.uint8)).convert("RGB").save(tmp_path / "image.jpg", quality=95)
    with Image.open(tmp_path / "image.jpg") as image:
        full = image.convert("RGB").crop((200, 0, 1400, 1200)).resize((64, 64), Image.Resampling.BILINEAR)
    difference = decode(tmp_path / "image.jpg", 64).astype(int) - np.asarray(full).transpose(2, 0, 1)
    assert np.abs(difference).max() <= 3


# The cache


def test_the_cache_is_used_again_and_memory_mapped(tmp_path, cache, monkeypatch):
    root = fill(tmp_path / "images")
    first = ready(root, cache)
    monkeypatch.setattr(folder_module, "decode", None)
    second = ready(root, cache)
    assert torch.equal(first.train_set.images, second.train_set.images)
    assert len(list(cache.iterdir())) == 1
    with open("/proc/self/maps") as maps:
        assert any(str(cache) in line for line in maps)


@pytest.mark.parametrize("change", ["add", "remove", "repaint", "touch"])
def test_the_cache_is_rebuilt_when_files_change(tmp_path, cache, change):
    root = fill(tmp_path / "images")
    ready(root, cache)
    (before,) = cache.iterdir()
    path = root / "red" / "3.png"
    if change == "add":
        paint(root / "red" / "new.png", COLOURS["red"])
    elif change == "remove":
        path.unlink()
    elif change == "repaint":
        paint(path, (250, 0, 0))
    else:
        os.utime(path, (1, 1))
    data = ready(root, cache, val_size=0)
    (after,) = cache.iterdir()
    assert after != before
    assert len(data.train_set) + len(data.test_set) == {"add": 31, "remove": 29}.get(change, 30)
    both = torch.cat([data.train_set.images, data.test_set.images])
    assert (both == 250).any() == (change == "repaint")


def test_another_size_has_a_cache_of_its_own(tmp_path, cache):
    root = fill(tmp_path / "images")
    assert ready(root, cache).train_set.images.shape[-1] == 8
    assert ready(root, cache, resize=12).train_set.images.shape[-1] == 12
    assert ready(root, cache, image_size=16).train_set.images.shape[-1] == 16
    assert len(list(cache.iterdir())) == 3


def test_the_folders_statistics_are_measured_on_its_training_images(tmp_path, cache):
    data = ready(fill(tmp_path / "images"), cache)
    assert data.mean == pytest.approx([200 / 255 / 3] * 3, abs=0.02)


# Mistakes


def test_a_folder_that_is_not_there_says_what_is_expected(tmp_path, cache):
    with pytest.raises(FileNotFoundError, match=r"does not exist; set data\.root .*train/<class>"):
        ready(tmp_path / "nowhere", cache)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_classes_are_refused(tmp_path, cache, count):
    root = tmp_path / "images"
    root.mkdir()
    if count:
        fill(root, 2, {"red": COLOURS["red"]})
    with pytest.raises(ValueError, match=r"has (one class \(red\)|no class folders); a classifier needs at least two"):
        ready(root, cache)
    with pytest.raises(ValueError, match="at least two"):
        count_classes(str(root))


def test_a_folder_with_no_images_is_refused(tmp_path, cache):
    for name in COLOURS:
        (tmp_path / "images" / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no images in .*images\. Readable are \.jpg"):
        ready(tmp_path / "images", cache)


def test_a_class_with_no_images_is_named(tmp_path, cache):
    root = fill(tmp_path / "images", 2)
    (root / "white").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in .* \(white\)"):
        ready(root, cache, num_classes=4)


def test_a_class_that_train_lacks_is_named(tmp_path, cache):
    root = fill(tmp_path / "images" / "train").parent
    fill(root / "test", 2, COLOURS | {"white": (255, 255, 255)})
    with pytest.raises(ValueError, match=r"has classes that .*train lacks: white"):
        ready(root, cache)


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "cut off"])
def test_broken_images_are_named_and_leave_no_cache_behind(tmp_path, cache, content):
    root = fill(tmp_path / "images", 4)
    good = paint(tmp_path / "good.jpg", (9, 9, 9), (200, 200))
    (root / "red" / "broken.jpg").write_bytes(good.read_bytes()[:700] if content is None else content)
    with pytest.raises(ValueError, match=r"1 of 13 images cannot be read: .*broken\.jpg"):
        ready(root, cache)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("test_size", [0, 30, 1.0, 0.001])
def test_a_test_size_that_leaves_nothing_is_refused(tmp_path, cache, test_size):
    with pytest.raises(ValueError, match=rf"data\.test_size={test_size} of the 30 images"):
        ready(fill(tmp_path / "images"), cache, test_size=test_size)


def test_a_wrong_number_of_classes_says_the_right_one(tmp_path, cache):
    with pytest.raises(ValueError, match=r"set data\.num_classes=3"):
        ready(fill(tmp_path / "images"), cache, num_classes=10)
