"""Folders of images: layouts, formats, the cache, and what can be wrong with them."""

import io
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image
from torchvision import datasets

from src.data import cache as cache_module
from src.data import listing
from src.data.cache import DecodedCache
from src.data.decode import decode
from src.data.folder import ImageFolder

SPLITS = ("train", "val", "test")
walk = os.walk
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


def cached(root, kind="pixels"):
    return sorted((root.parent / "cache").glob(f"*.{kind}"))


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded, as they come."""
    names = []

    def noted(path, *options):
        names.append(Path(path).name)
        return decode(path, *options)

    monkeypatch.setattr(cache_module, "decode", noted)
    return names


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
    for suffix in ("jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "ppm", "pgm", "JPG"):
        paint(root / "red" / "more" / f"deep.{suffix}", COLOURS["red"])
    theirs = len(datasets.ImageFolder(str(root)))
    for name in (".hidden", ".hidden.png", "notes.txt"):
        (root / "red" / name).write_text("")
    with pytest.warns(UserWarning, match=r"ignored files .* no images: 1, e\.g\. .*notes\.txt"):
        data = ready(root, val_size=0)
    train, test = counts(data, ("train", "test"))
    assert [a + b for a, b in zip(train, test, strict=True)] == [10, 10, theirs - 20] == [10, 10, 20]


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


@pytest.mark.parametrize(("place", "byte", "turned"), [(17, 0x00, True), (31, 0x07, False)], ids=["a tag", "its own"])
def test_an_image_with_damaged_exif_is_read_and_upright_where_its_orientation_is_there(tmp_path, place, byte, turned):
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8] = 255
    exif, path = Image.Exif(), tmp_path / "image.jpg"
    exif[0x0112], exif[0x010E] = 6, "abc"
    Image.fromarray(np.rot90(upright)).save(path, exif=exif, quality=95)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"Exif") + place] = byte
    path.write_bytes(damaged)
    pixels = decode(path, 16)
    pixels = pixels if turned else pixels.swapaxes(1, 2)
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


def test_the_cache_is_used_again_and_mapped_for_reading_alone(root, decoded):
    first = ready(root).examples("train", 30)[0]
    assert len(decoded) == 30
    data = ready(root)
    assert torch.equal(first, data.examples("train", 30)[0])
    assert len(decoded) == 30
    (cache,) = cached(root)
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(cache))]
    assert maps
    assert all(line.split()[1].startswith("r--") for line in maps)


def test_a_cache_larger_than_the_memory_opens(tmp_path):
    cache = DecodedCache(tmp_path / "large", 4096, 3)
    np.arange(20_000, dtype=np.uint64).tofile(cache.keys)
    with open(cache.pixels, "wb") as file:
        file.truncate(20_000 * 3 * 4096**2)  # 1 TB of nothing
    assert cache.images()[19_999, 2, 4095, 4095] == 0


@pytest.mark.parametrize(
    ("change", "count", "again"),
    [
        (lambda red: paint(red / "new.png", (250, 0, 0)), 31, ["new.png"]),
        (lambda red: paint(red / "3.png", (250, 0, 0)), 30, ["3.png"]),
        (lambda red: (red / "3.png").unlink(), 29, []),
        (lambda red: os.utime(red / "3.png", (1, 1)), 30, ["3.png"]),
    ],
    ids=["add", "repaint", "remove", "touch"],
)
def test_a_file_that_changed_is_decoded_and_no_other(root, decoded, change, count, again):
    ready(root)
    decoded.clear()
    painted = change(root / "red") is not None
    data = ready(root, val_size=0)
    assert decoded == again
    both = torch.cat([data.examples(split, 100)[0] for split in ("train", "test")])
    assert (len(both), bool((both == 250).any())) == (count, painted)


def test_only_what_a_run_uses_is_decoded_whatever_its_split(root, decoded):
    ready(root, limit=12)
    assert len(decoded) == 12 + 3  # the rest of the limit's 12 test images are not there
    for options in ({"val_size": 0.3, "split_seed": 5}, {"val_size": 9}, {"val_size": 0}):
        ready(root, **options)
        assert len(decoded) == 30


def test_what_was_decoded_before_a_kill_is_not_decoded_again(root, decoded, monkeypatch):
    monkeypatch.setattr(cache_module, "CHUNK", 4 * 3 * 8 * 8)  # four images at a time
    good = cache_module.decode

    def killed(path, *options):
        if len(decoded) == 10:
            raise KeyboardInterrupt
        return good(path, *options)

    monkeypatch.setattr(cache_module, "decode", killed)
    with pytest.raises(KeyboardInterrupt):
        ready(root)
    with open(cached(root)[0], "ab") as file:
        file.write(b"half an image")
    kept = np.fromfile(cached(root, "keys")[0], np.uint64).size
    assert 4 <= kept <= 10
    decoded.clear()
    monkeypatch.setattr(cache_module, "decode", good)
    list(counts(ready(root)))
    assert len(decoded) == 30 - kept


@pytest.mark.parametrize("kind", ["pixels", "keys"])
@pytest.mark.parametrize("damage", ["cut off", "overwritten", "zeroed", "gone"])
def test_damage_is_noticed_and_repaired(root, decoded, kind, damage):
    expected = ready(root).examples("train", 30)[0]
    (file,) = cached(root, kind)
    size = file.stat().st_size
    if damage in ("overwritten", "zeroed") and kind == "pixels":
        pytest.skip("the pixels have no checksum")
    if damage == "cut off":
        os.truncate(file, size * 2 // 3 - 1)
    elif damage == "overwritten":
        file.write_bytes(os.urandom(size))
    elif damage == "zeroed":
        file.write_bytes(bytes(size // 2) + file.read_bytes()[size // 2 :])
    else:
        file.unlink()
    decoded.clear()
    data = ready(root)
    assert torch.equal(data.examples("train", 30)[0], expected)
    assert len(decoded) == {"cut off": 11, "zeroed": 15}.get(damage, 30)
    decoded.clear()
    ready(root)
    assert decoded == []


def test_a_group_may_read_what_the_umask_lets_it(root):
    before = os.umask(0o027)
    try:
        ready(root)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (root.parent / "cache").iterdir()} == {0o640}


def test_a_disk_that_fills_ends_with_one_message_and_nothing_half_made(root):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ready(root, limit=9, val_size=3)
    before = {file: file.read_bytes() for file in (root.parent / "cache").iterdir()}
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))  # as a disk that has no more
    try:
        with pytest.raises(ValueError, match=r"pixels cannot be written \(.*\): \d+ images need .* data\.mode=stream"):
            ready(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file: file.read_bytes() for file in (root.parent / "cache").iterdir()} == before
    assert sum(map(sum, counts(ready(root)))) == 30


def test_of_two_that_prepare_at_once_one_decodes_and_the_other_waits_for_it(root, monkeypatch):
    names = []

    def slow(path, *options):
        names.append(path)
        time.sleep(0.02)
        return decode(path, *options)

    monkeypatch.setattr(cache_module, "decode", slow)
    with ThreadPoolExecutor(2) as pool:  # a file lock keeps threads apart as it does processes
        list(pool.map(ready, [root, root]))
    assert len(names) == 30


def test_another_size_has_a_cache_of_its_own(root):
    for side, options in ((8, {}), (12, {"resize": 12}), (16, {"image_size": 16})):
        assert ready(root, **options).examples("train", 1)[0].shape[-1] == side
    assert len(cached(root)) == 3


def test_a_device_gets_the_images_that_a_run_uses_and_no_more(root):
    expected = ready(root).examples("train", 30)[0]
    ready(root, limit=12)
    data = ImageFolder(
        root=str(root),
        cache_dir=str(root.parent / "cache"),
        num_classes=None,
        image_size=8,
        batch_size=4,
        store="device",
    )
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data.prepare_data()
    data.setup("fit")
    assert torch.equal(data._sets["train"].images, expected)


# The listing


def settled(root):
    """As if nothing had been changed for a minute: a change within a clock's tick would not be seen."""
    past = time.time() - 60
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, (past, past))
    return root


def listed(root):
    """What is listed, and whether that took a look at the folders' contents."""
    looked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listing.os, "walk", lambda *place, **how: looked.append(place) or walk(*place, **how))
        found = listing.open_listing(root, root.parent / "cache/kept")
    names = {split: [files.name(row) for row in range(len(files))] for split, files in found.splits.items()}
    return (found.classes, names, [files.labels.tolist() for files in found.splits.values()]), bool(looked)


def test_a_second_start_looks_at_the_folders_alone_until_one_changes(root):
    paint(root / "red/more/deep.png", COLOURS["red"])
    first, looked = listed(settled(root))
    assert looked
    assert first[1]["train"][-1] == str(root / "red/more/deep.png")
    assert first[2] == [[0] * 10 + [1] * 10 + [2] * 11]
    assert listed(root) == (first, False)
    paint(root / "red/more/deeper.png", COLOURS["red"])
    second, looked = listed(root)
    assert looked
    assert second[1]["train"] == [*first[1]["train"], str(root / "red/more/deeper.png")]
    assert listed(root) == (second, True), "a change as young as this may not be the last"
    settled(root)
    listed(root)
    (root / "red/more").rename(root / "blue/more")
    assert listed(root)[0][2] == [[0] * 12 + [1] * 10 + [2] * 10]


@pytest.mark.parametrize("kind", ["json", "npy"])
@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:-9] + bytes(9), lambda data: b""])
def test_a_listing_that_is_damaged_is_made_again(root, kind, damage):
    first, _ = listed(settled(root))
    file = root.parent / f"cache/kept.{kind}"
    file.write_bytes(damage(file.read_bytes()))
    assert listed(root) == (first, True)
    assert listed(root) == (first, False)


def test_a_listing_of_other_kinds_of_files_is_made_again(root, monkeypatch):
    paint(root / "red/scan.tif", COLOURS["red"])
    with monkeypatch.context() as earlier:
        earlier.setattr(listing, "IMG_EXTENSIONS", (".png",))
        with pytest.warns(UserWarning, match="no images: 1"):
            found, _ = listed(settled(root))
    assert len(found[1]["train"]) == 30
    found, looked = listed(root)
    assert (len(found[1]["train"]), looked) == (31, True)


def test_a_listing_that_cannot_be_kept_is_told_of_and_used(root):
    (root.parent / "cache").write_text("no folder")
    with pytest.warns(UserWarning, match="is not kept for the next start"):
        assert len(listed(root)[0][1]["train"]) == 30


@pytest.mark.timeout(20)
def test_links_that_lead_back_and_pipes_hang_nothing(root):
    for name in ("blue", "red"):  # every folder leads to every other, time and again
        for other in ("blue", "green", "red", "."):
            (root / name / f"to {other}").symlink_to(root / other)
    (root / "red/ring.png").symlink_to(root / "red/ring.png")
    os.mkfifo(root / "red/pipe.png")
    with pytest.warns(UserWarning, match=r"left out: .*pipe\.png \(there is no file of that name\)"):
        data = ready(root, broken="skip", val_size=0)
    assert len(cached(root)) == 1
    assert data.size("train") > 0


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


def strange() -> bytes:
    """An image in a format of games, damaged so that Pillow raises no OSError or ValueError."""
    file = io.BytesIO()
    Image.new("P", (8, 8)).save(file, "BLP")
    content = bytearray(file.getvalue())
    content[8] = 200  # its encoding
    return bytes(content)


@pytest.mark.parametrize("content", [b"", b"no image", strange(), None], ids=["empty", "text", "strange", "cut off"])
def test_broken_images_are_named_and_left_out_on_request(root, decoded, content):
    ready(root, val_size=0)
    good = paint(root.parent / "good.jpg", (9, 9, 9), (200, 200))
    (root / "red" / "broken.jpg").write_bytes(good.read_bytes()[:700] if content is None else content)
    with pytest.raises(ValueError, match=r"1 of \d+ images cannot be read: .*broken\.jpg \(.*data\.broken=skip"):
        ready(root, val_size=0)
    decoded.clear()
    with pytest.warns(UserWarning, match=r"left out: 1 of \d+ images cannot be read: .*broken\.jpg"):
        data = ready(root, val_size=0, broken="skip")
    assert set(decoded) == {"broken.jpg"}
    assert [data.size(split) for split in ("train", "val")] == [data.class_counts().sum(), 0]
    assert data.size("train") + data.size("test") == 30
