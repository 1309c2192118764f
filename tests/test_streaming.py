"""Folders whose images are read as they are needed: what a batch holds, its draws, and what breaks while it is read."""

import os
import re
import shutil
import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from src.data import augment, folder
from src.data.digits import Digits
from src.data.folder import ImageFolder, ImageNet
from src.data.listing import Files
from src.data.samplers import Loader, TrainLoader
from src.data.streaming import ReadError, random_box
from tests.conftest import QUICK, SILENT, train_here

SIDE = 16
CLASSES = ["a", "b", "c"]


def ramp(height, width):
    """An image whose red says the row and whose green the column of a pixel; blue is 128."""
    rows = np.linspace(20, 230, height)[:, None].repeat(width, 1)
    columns = np.linspace(20, 230, width)[None].repeat(height, 0)
    return Image.fromarray(np.stack([rows, columns, np.full_like(rows, 128)], -1).round().astype(np.uint8))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """20 images in each of three classes, wide and tall, as PNG and as JPEG that are much larger than `SIDE`."""
    root = tmp_path_factory.mktemp("streamed") / "images"
    for i in range(60):
        path = root / CLASSES[i % 3] / f"{i:02}.{'png' if i % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        ramp(*((90, 120), (130, 80))[i // 2 % 2]).save(path, quality=98)
    return root


def ready(root, kind=ImageFolder, **options):
    options = {"num_classes": None, "image_size": SIDE, "batch_size": 8, "mean": "half", "mode": "stream"} | options
    data = kind(root=str(root), cache_dir=str(root.parent / "cache"), **options)
    data.prepare_data()
    data.setup()
    return data


def crop(**options):
    return {"crop": augment.RandomResizedCrop(SIDE, **options)}


def batches(data, epoch=0, done=0, workers=0):
    """The training batches of an epoch from the `done`-th on, as a Trainer in that place gets them."""
    data._position = lambda: (epoch, done)
    data.num_workers = workers
    return list(data.train_dataloader())


def together(found):
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


# What a batch holds


def test_both_modes_have_the_same_labels_and_the_same_images_to_evaluate(root):
    memory, stream = (ready(root, mode=mode, resize=20, augment=crop()) for mode in ("memory", "stream"))
    assert memory.classes == stream.classes == CLASSES
    for split, count in (("train", 49), ("val", 5), ("test", 6)):
        (images, labels), (others, other_labels) = (data.examples(split, 60) for data in (memory, stream))
        assert images.shape == (count, 3, 20, 20)
        assert torch.equal(images, others)
        assert torch.equal(labels, other_labels)
    images, labels = (torch.cat(parts) for parts in zip(*stream.test_dataloader(), strict=True))
    assert torch.equal(images, memory.examples("test", 6)[0])


def test_the_checksum_of_streamed_images_is_that_of_their_labels_and_names_wherever_they_lie(root, tmp_path):
    checksum, moved = ready(root).digest("test"), tmp_path / "moved/images"
    shutil.copytree(root, moved)
    assert ready(moved).digest("test") == checksum
    next((moved / CLASSES[0]).iterdir()).rename(moved / CLASSES[0] / "other.png")
    assert ready(moved).digests() != ready(root).digests()


def test_random_boxes_are_cut_from_the_whole_image_and_resized(root):
    data = ready(root, augment=crop(), resize=20, val_size=0)
    data._sets["train"].with_index = True
    images, labels, index = together(batches(data, epoch=3))
    assert (images.dtype, images.shape) == (torch.uint8, (48, 3, SIDE, SIDE))
    files, rows = data._sets["train"].images, data._sets["train"].rows
    scales = []
    for image, label, i in zip(images, labels, index.tolist(), strict=True):
        with Image.open(files.name(int(rows[i]))) as original:
            width, height = original.size
        assert files.name(int(rows[i])).split("/")[-2] == CLASSES[label]
        top, left, tall, wide = random_box(
            data._steps[0], augment.Draw(1, data.seed, 3, i, kind=2).generator, height, width
        )
        place = torch.arange(SIDE) + 0.5  # of the output's pixels
        rows_of = 20 + 210 * (top + place * tall / SIDE - 0.5) / (height - 1)
        columns_of = 20 + 210 * (left + place * wide / SIDE - 0.5) / (width - 1)
        expected = torch.stack([rows_of[:, None].expand(SIDE, SIDE), columns_of[None].expand(SIDE, SIDE)])
        assert (image[:2, 1:-1, 1:-1] - expected[:, 1:-1, 1:-1]).abs().max() < 3.5
        assert (image[2].float() - 128).abs().max() <= 2
        scales.append(tall * wide / height / width)
    assert min(scales) < 0.2
    assert max(scales) > 0.8
    augmented, _ = data.augment(images, labels, 3)
    assert torch.equal(augmented, data.preprocess.normalise(images)), "the crop is neither done again nor resized"


def test_what_is_cropped_before_a_step_of_single_images_is_not_resized_again(root):
    steps = {"crop": augment.RandomCrop(0, size=SIDE), "same": v2.Identity()}
    data = ready(root, augment=steps, resize=20, val_size=0)
    images, labels, *_ = batches(data)[0]
    assert images.shape[-1] == SIDE
    assert torch.equal(data.augment(images, labels)[0], data.preprocess.normalise(images))


def test_the_boxes_are_those_of_the_batched_crop():
    drawn, sizes = augment.RandomResizedCrop(SIDE, scale=(0.05, 0.9), ratio=(0.5, 3)), (375, 500)

    class Same(augment.Draw):
        """Gives each image one number for each call, which its own generator gives in a row."""

        def __post_init__(self):
            numbers = torch.stack([torch.rand(4, generator=torch.Generator().manual_seed(i)) for i in range(300)])
            self.numbers = iter(numbers.T)

        def uniform(self):
            return next(self.numbers)

    batched = torch.stack(drawn.boxes(Same(300), *sizes), 1)
    ours = torch.tensor([random_box(drawn, torch.Generator().manual_seed(i), *sizes) for i in range(300)])
    assert (ours - batched).abs().max() <= 1, "but for the last bit of a float32"
    assert (ours == batched).float().mean() > 0.99


def test_an_image_that_lies_on_its_side_is_cut_upright(tmp_path):
    for name in CLASSES[:2]:
        (tmp_path / "images" / name).mkdir(parents=True)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned a quarter to the right
        turned = Image.fromarray(np.rot90(np.asarray(ramp(200, 100))))
        turned.save(tmp_path / f"images/{name}/0.jpg", exif=exif, quality=98)
    data = ready(
        tmp_path / "images", augment=crop(scale=(0.5, 0.5), ratio=(1, 1)), test_size=1, batch_size=1, val_size=0
    )
    (images, *_), *_ = batches(data)
    red, green, _ = images[0].float()
    assert (red.diff(dim=0) > 1).all(), "red grows downwards"
    assert (green.diff(dim=1) > 4).all(), "and green, twice as fast in half the width, to the right"


def test_without_such_a_crop_first_the_batches_are_those_of_memory(root):
    steps = {"crop": augment.RandomCrop(2), "flip": augment.RandomHorizontalFlip()}
    memory, stream = (ready(root, mode=mode, augment=steps, balance=True) for mode in ("memory", "stream"))
    for i, pair in enumerate(zip(batches(memory), batches(stream), strict=True)):
        ours, theirs = (data.augment(*batch, 0, i) for data, batch in zip((memory, stream), pair, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_grey_images_stay_grey(root):
    images, *_ = together(batches(ready(root, channels=1, augment=crop())))
    assert images.shape == (48, 1, SIDE, SIDE)


# Draws


def per_image():
    return {**crop(), "flip": augment.RandomHorizontalFlip(), "jitter": v2.ColorJitter(hue=0.3)}


@pytest.mark.parametrize("steps", [crop, per_image])
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_draws_are_those_of_the_image_and_epoch_for_any_number_of_workers_and_processes(root, steps):
    data = ready(root, augment=steps(), val_size=0)
    data._sets["train"].with_index = True
    images, labels, index = together(batches(data, epoch=2))
    for workers in (1, 3):
        again = together(batches(data, epoch=2, workers=workers))
        assert all(torch.equal(a, b) for a, b in zip((images, labels, index), again, strict=True))
    ranks = []
    for rank in (0, 1):
        data._rank_and_world = lambda rank=rank: (rank, 2)
        ranks.append(together(batches(data, epoch=2, workers=1)))
    assert torch.equal(torch.stack([found for found, *_ in ranks], 1).flatten(0, 1), images)
    assert len(torch.cat([positions for *_, positions in ranks]).unique()) == len(images), "no image comes twice"
    data._rank_and_world = lambda: (0, 1)
    other, _, others = together(batches(data, epoch=4))
    both = [i for i in index.tolist() if i in others]
    changed = [(images[index == i] != other[others == i]).any() for i in both]
    assert sum(changed) > 0.9 * len(both) > 30, "each epoch has boxes of its own"


@pytest.mark.skipif(sys.platform != "linux", reason="macOS starts workers anew")
def test_workers_are_forks_which_share_what_is_held_whatever_python_itself_would_start(root):
    loader = ready(root, num_workers=1).train_dataloader()
    assert loader.multiprocessing_context.get_start_method() == "fork"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_workers_that_are_started_anew_as_on_macos_give_the_same_batches(root, monkeypatch, mode):
    data = ready(root, mode=mode, augment=per_image())
    expected = together(batches(data))
    anew = {"num_workers": 1, "multiprocessing_context": "spawn"}
    monkeypatch.setattr("src.data.samplers.worker_options", lambda number: anew)
    assert all(torch.equal(a, b) for a, b in zip(together(batches(data)), expected, strict=True))


def test_transforms_that_go_image_by_image_are_done_where_it_is_read(root):
    data = ready(root, augment=per_image() | {"shift": augment.RandomCrop(1)})
    assert [type(step).__name__ for step in data._steps] == ["RandomResizedCrop", "RandomHorizontalFlip", "PerImage"]
    assert [type(step).__name__ for step in data.before_normalize] == ["RandomCrop"]
    assert (together(batches(data))[0][:, 0].float() - together(batches(data))[0][:, 1].float()).abs().max() > 0


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_goes_on_in_its_middle_has_the_batches_of_the_whole_one(root, workers):
    data = ready(root, augment=crop())
    whole = batches(data, epoch=1, workers=workers)
    rest = batches(data, epoch=1, done=3, workers=workers)
    assert len(rest) == len(whole) - 3
    for first, second in zip(whole[3:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("split", ["train", "val"])
def test_what_is_evaluated_is_never_cut_at_random(root, split):
    data = ready(root, augment=crop())
    batches(data)
    data.eval_split = split
    images, _ = together(data.test_dataloader())
    assert torch.equal(images, data.examples(split, 60)[0])
    assert torch.equal(images, together(data.test_dataloader())[0])


# Which mode, and its numbers


@pytest.mark.parametrize(
    ("options", "streams"),
    [({"mode": "auto"}, True), ({"mode": "auto", "limit": 20}, False), ({"mode": "memory"}, False), ({}, True)],
)
def test_auto_streams_what_takes_much_decoded_and_says_so(root, monkeypatch, caplog, options, streams):
    monkeypatch.setattr(folder, "MEMORY", 50 * 3 * SIDE**2)
    with caplog.at_level("INFO"):
        data = ready(root, **options)
    (line,) = (record.getMessage() for record in caplog.records if record.name == "src.data.folder")
    assert data.streams == streams
    assert (data.num_workers > 0) == streams
    assert f"{options.get('limit', 60)} images" in line
    assert ("streamed" if streams else "held in memory") in line


# What breaks


@pytest.fixture
def broken(tmp_path, root):
    """The JPEGs in train/, of which one is cut off, and in test/."""
    for i, path in enumerate(sorted(root.rglob("*.jpg"))):
        for split in ("train", "test"):
            place = tmp_path / "images" / split / path.relative_to(root)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes()[: 500 if i == 4 and split == "train" else None])
    return tmp_path / "images"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_whoever_reads_it(broken, workers):
    data = ready(broken, val_size=0, augment=crop(), mean="half")
    with pytest.raises(ReadError) as caught:
        batches(data, workers=workers)
    told = rf"{broken}/train/a/[0-9]+\.jpg cannot be read: [^\n]+; data\.broken=skip leaves out such images"
    assert re.fullmatch(told, str(caught.value))


@pytest.mark.filterwarnings("ignore:left out")
def test_a_broken_image_is_left_out_of_training_and_counts_for_nothing_elsewhere_on_request(broken):
    data = ready(broken, val_size=0, augment=crop(), batch_size=30, broken="skip")
    for images, labels in [*batches(data), *batches(data, workers=1)]:
        assert len(images) == len(labels) == 29
        assert (labels >= 0).all()
    data.eval_split = "train"
    images, labels = together(data.test_dataloader())
    assert (len(images), int((labels < 0).sum()), int(images[labels < 0].sum())) == (30, 1, 0)


@pytest.mark.filterwarnings("ignore:left out")
def test_a_broken_image_is_left_out_of_the_mean_and_the_deviation_in_both_modes(broken):
    options = {"val_size": 0, "mean": None, "broken": "skip"}
    memory, stream = (ready(broken, mode=mode, **options) for mode in ("memory", "stream"))
    assert (memory.size("train"), stream.size("train")) == (29, 30)
    assert (stream.mean, stream.std) == (memory.mean, memory.std)


def test_a_pipe_in_the_place_of_an_image_hangs_nobody(broken):
    data = ready(broken, val_size=0)
    name = data._sets["train"].images.name(int(data._sets["train"].rows[0]))
    os.unlink(name)
    os.mkfifo(name)
    with pytest.raises(ReadError, match="cannot be read: there is no file of that name"):
        data.examples("train", 1)


def test_what_goes_wrong_with_a_batch_is_told_before_anyone_else_has_it() -> None:
    class Lost(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> int:
            raise ConnectionResetError("by a worker that was killed")

    def tell(error: Exception) -> None:
        raise ReadError("a worker died") from error

    for kind in (Loader, TrainLoader):
        loader = kind(Lost(), batch_size=1)
        with pytest.raises(ConnectionResetError):
            next(iter(loader))
        loader.failed = tell
        with pytest.raises(ReadError, match="a worker died"):
            next(iter(loader))


def test_a_data_module_is_told_of_what_goes_wrong_with_a_batch_of_any_split() -> None:
    data = Digits(num_classes=10, image_size=32, limit=100, batch_size=8)
    data.setup()
    loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())
    assert [loader.failed for loader in loaders] == [data.on_exception] * 3


@pytest.mark.slow
def test_a_worker_that_is_killed_tells_what_it_read(root, config, monkeypatch):
    opened = Files.open

    def deadly(self, row):
        if self.name(row).endswith("07.png") and torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)
        return opened(self, row)

    monkeypatch.setattr(Files, "open", deadly)
    small = [option for option in QUICK if not option.startswith("data.")]
    options = [f"data.root={root}", "data.mode=stream", "data.num_workers=1", "data.batch_size=4", "data.val_size=0"]
    with pytest.raises(ReadError, match=r"^a worker died while it read .*/b/07\.png: "):
        train_here(config("data=folder", *small, *SILENT, *options, "data.test_size=3", "test=false"))


# ImageNet


def test_imagenet_tests_on_val_and_has_the_names_of_its_synsets_two_of_which_are_called_the_same(tmp_path):
    wnids = {"n01440764": "tench, Tinca tinca", "n02012849": "crane", "n03126707": "crane"}
    for split, count in (("train", 6), ("val", 2)):
        for wnid in wnids:
            for i in range(count):
                path = tmp_path / f"imagenet/{split}/{wnid}/{wnid}_{i}.JPEG"
                path.parent.mkdir(parents=True, exist_ok=True)
                ramp(40, 50).save(path, "jpeg")
    data = ready(tmp_path / "imagenet", ImageNet, val_size=3, mean=None)
    assert data.classes == list(wnids)
    lines = [f"{wnid} {name}" for wnid, name in reversed(wnids.items())]
    (tmp_path / "imagenet/LOC_synset_mapping.txt").write_text("\n".join(lines))
    data = ready(tmp_path / "imagenet", ImageNet, val_size=3, mean=None)
    assert data.classes == ["tench, Tinca tinca", "crane (1)", "crane (2)"]
    assert [data.size(split) for split in ("train", "val", "test")] == [15, 3, 6]
    assert "/val/" in data._sets["test"].images.name(0)
    assert data.mean == [0.485, 0.456, 0.406]
