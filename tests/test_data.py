"""Splits, samplers, loaders and the batch's way to the model, on the bundled digits and on made-up images."""

import hashlib
import itertools
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from src.data.augment import AlternatingFlip, Cutout, RandomCrop
from src.data.base import ImageDataModule
from src.data.digits import Digits
from src.data.draw import Draw
from src.data.memory import MemoryDataModule, fold_of, stratified
from src.data.mixing import MixUp
from src.data.samplers import WINDOW, TrainSampler, by_chunks

pytestmark = pytest.mark.filterwarnings("ignore", "error:.*not resumable.*")

LABELS = torch.arange(4).repeat_interleave(torch.tensor([40, 30, 20, 10]))


class Numbered(MemoryDataModule):
    """The number of an image is written in its pixels, so that any batch tells which images are in it."""

    own_mean = own_std = (0.5, 0.5, 0.5)

    def __init__(self, **options):
        super().__init__(**{"num_classes": 4, "image_size": 8, "batch_size": 10, "val_size": 0.2} | options)
        self.classes = ["a", "b", "c", "d"]

    def load_train(self):
        return numbered(range(100)), LABELS

    def load_test(self):
        return numbered(range(100, 137)), torch.arange(37) % 4


def numbered(numbers):
    return torch.tensor(list(numbers), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()


def numbers_in(batch):
    return batch[0][:, 0, 0, 0].tolist()


def everything(data, split):
    """(numbers, labels) of a split."""
    images, labels = data.examples(split, range(data.size(split)))
    return numbers_in((images,)), labels


def sizes(data):
    return [data.size(split) for split in ("train", "val", "test")]


def ready(stage=None, rank=None, world=1, device="cpu", **options):
    data = Numbered(**options)
    if rank is not None:
        place = SimpleNamespace(root_device=torch.device(device))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world, training=False, strategy=place)
    data.setup(stage)
    return data


# Splits


def test_validation_is_stratified_and_shares_no_image_with_training():
    data = ready()
    (train, train_labels), (val, val_labels) = (everything(data, split) for split in ("train", "val"))
    assert train_labels.bincount().tolist() == [32, 24, 16, 8]
    assert val_labels.bincount().tolist() == [8, 6, 4, 2]
    assert sorted(train + val) == list(range(100))
    assert torch.equal(LABELS[train + val], torch.cat([train_labels, val_labels]))


def test_the_split_goes_by_split_seed_and_not_by_seed():
    chosen = [everything(ready(seed=seed, split_seed=split), "val")[0] for seed, split in ((0, 0), (1, 0), (0, 1))]
    assert chosen[0] == chosen[1]
    assert chosen[0] != chosen[2]


@pytest.mark.parametrize(("val_size", "expected"), [(0.25, 25), (7, 7), (1, 1), (0.5, 50), (0, 0)])
def test_val_size_is_a_share_or_a_number_and_none_makes_no_loader(val_size, expected):
    data = ready(val_size=val_size)
    assert sizes(data) == [100 - expected, expected, 37]
    assert (data.val_dataloader() == []) == (expected == 0)


@pytest.mark.parametrize("val_size", [100, 150, 1.0, 1.5, -1, -0.1, 0.001])
def test_a_val_size_that_leaves_nothing_is_refused(val_size):
    with pytest.raises(ValueError, match=rf"data\.val_size={val_size} of 100 training images .*1 to 99"):
        ready(val_size=val_size)


def test_limit_takes_a_stratified_part_of_train_and_test():
    data = ready(limit=20, batch_size=4)
    assert sizes(data) == [16, 4, 20]
    both = torch.cat([everything(data, split)[1] for split in ("train", "val")])
    assert both.bincount().tolist() == [8, 6, 4, 2]
    assert sizes(ready(limit=99, batch_size=4)) == [79, 20, 37]


def test_stratified_draws_exactly_the_count_it_is_asked_for():
    labels = torch.tensor([0] * 7 + [1] * 5 + [2] * 3)
    for count in range(16):
        drawn, rest = stratified(labels, count, seed=0)
        assert len(drawn) == count
        assert sorted([*drawn.tolist(), *rest.tolist()]) == list(range(15))
        shares = labels[drawn].bincount(minlength=3) - torch.tensor([7, 5, 3]) * count / 15
        assert shares.abs().max() < 1


@pytest.mark.parametrize("options", [{}, {"split_seed": 1}, {"limit": 50, "batch_size": 4}])
def test_folds_share_no_image_cover_all_and_are_stratified_whichever_is_asked_for_first(options):
    each = {fold: ready(folds=5, fold=fold, **options) for fold in (3, 0, 4, 2, 1)}
    parts = [everything(each[fold], "val")[0] for fold in range(5)]
    count = options.get("limit", 100)
    assert len({n for part in parts for n in part}) == sum(map(len, parts)) == count
    for fold, data in each.items():
        assert sizes(data) == [count * 4 // 5, count // 5, min(37, count)]
        assert everything(data, "val")[1].bincount().tolist() == [count * share // 500 for share in (40, 30, 20, 10)]
        rest = {n for other in range(5) if other != fold for n in parts[other]}
        assert set(everything(data, "train")[0]) == rest
        assert everything(data, "test")[0] == everything(ready(**options), "test")[0], "sealed as ever"
    assert (everything(ready(folds=5, fold=0), "val")[0] == parts[0]) == (options == {}), "split_seed draws them"


def test_folds_of_a_number_that_does_not_divide_the_images_differ_by_one_in_size_and_in_each_class():
    labels = torch.tensor([0] * 7 + [1] * 5 + [2] * 3)[torch.randperm(15, generator=torch.Generator().manual_seed(0))]
    for folds in range(2, 16):
        fold = fold_of(labels, folds, seed=0)
        for chosen in (fold, *(fold[labels == c] for c in range(3))):
            counts = chosen.bincount(minlength=folds)
            assert counts.max() - counts.min() <= 1
    with pytest.raises(ValueError, match=r"data\.folds=16 is more than the 15 training images"):
        fold_of(labels, 16, seed=0)


def test_folds_take_the_place_of_validation_images_of_its_own(monkeypatch):
    monkeypatch.setattr(Numbered, "load_val", lambda self: (numbered(range(200, 210)), torch.arange(10) % 4))
    with pytest.warns(UserWarning, match=r"data\.folds=4 leaves out the data set's own validation images"):
        data = ready(folds=4, fold=1)
    assert sizes(data) == [75, 25, 37]
    assert sizes(ready()) == [100, 10, 37]


@pytest.mark.parametrize(("stage", "other"), [("fit", "test"), ("test", "train")])
def test_images_that_a_stage_does_not_need_are_not_even_read(stage, other):
    with pytest.raises(RuntimeError, match=f"the {other} images are not loaded"):
        ready(stage).size(other)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_eval_split_serves_that_split_in_order_without_augmentation(split):
    data = Numbered(augment={"crop": RandomCrop(4)})
    data.eval_split = split
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [n for batch in batches for n in numbers_in(batch)] == everything(data, split)[0]
    images, _ = data.on_after_batch_transfer(batches[0], 0)
    torch.testing.assert_close(images, batches[0][0] / 127.5 - 1)


def test_examples_are_evenly_spaced_or_those_asked_for():
    data = ready(val_size=0)
    images, labels = data.examples("train", 4)
    assert (images.dtype, labels.dtype, images.shape) == (torch.uint8, torch.int64, (4, 3, 8, 8))
    assert (numbers_in((images,)), labels.tolist()) == ([0, 25, 50, 75], [0, 0, 1, 2])
    assert numbers_in(data.examples("test", [36, 0])) == [136, 100]
    assert len(data.examples("test", 1000)[0]) == 37
    assert data.examples("test", [])[0].shape == (0, 3, 8, 8)


def test_a_checksum_is_that_of_the_images_and_labels_of_its_split_in_order():
    data = ready(limit=36)
    images, labels = data.examples("test", range(36))
    assert data.digests()["test"] == hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
    assert set(data.digests()) == {"train", "val", "test"}
    data._sets["test"].images[5, 2, 7, 7] ^= 1
    assert data.digest("test") != ready(limit=36).digest("test")
    assert data.digest("val") == ready(limit=36).digest("val") != ready(limit=36, split_seed=1).digest("val")


# Loaders


def order(seed, epoch):
    sampler = ready(seed=seed).train_dataloader().sampler
    sampler.set_epoch(epoch)
    return list(sampler)


def test_one_epoch_shows_each_image_once_and_every_seed_and_epoch_has_an_order_of_its_own():
    orders = {(seed, epoch): order(seed, epoch) for seed in range(3) for epoch in range(3)}
    assert all(sorted(each) == list(range(80)) for each in orders.values())
    assert len({tuple(each) for each in orders.values()}) == 9  # seed 1's first epoch is not seed 0's second
    assert order(1, 2) == orders[1, 2]
    draws = Draw(10, seed=1, epoch=2).generator
    assert torch.randperm(80, generator=draws).tolist() != orders[1, 2]  # nor have the draws the order's numbers


@pytest.mark.parametrize("world", [2, 4])
def test_the_batches_of_all_processes_together_are_those_of_one(world):
    whole = [numbers_in(batch) for batch in ready(batch_size=16).train_dataloader()]
    parts = [
        [numbers_in(batch) for batch in ready(rank=rank, world=world, batch_size=16 // world).train_dataloader()]
        for rank in range(world)
    ]
    assert [[batch[rank::world] for batch in whole] for rank in range(world)] == parts


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_no_test_image_counts_twice_and_every_process_has_as_many_batches(world):
    seen, lengths = [], set()
    for rank in range(world):
        batches = list(ready(rank=rank, world=world).test_dataloader())
        lengths.add(len(batches))
        for images, labels in batches:
            assert (images[labels < 0] == 0).all()
            seen += images[labels >= 0][:, 0, 0, 0].tolist()
    assert len(lengths) == 1
    assert sorted(seen) == list(range(100, 137))


def test_store_device_keeps_the_images_on_the_training_device_and_fetches_there():
    data = ready(rank=0, device="meta", store="device")  # "meta" mixes with the CPU as little as a GPU does
    loader = data.train_dataloader()
    images, labels = next(iter(loader))
    assert (images.device.type, labels.device.type) == ("meta", "meta")
    assert loader.dataset.images is data.val_dataloader().dataset.images


def test_a_data_set_that_holds_no_image_in_memory_is_served_and_measured_by_the_same_base():
    pixels = torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[:, :, 0, 0] = numbered(range(20))[:, :, 0, 0]

    class Read:
        def __len__(self):
            return 20

        def __getitems__(self, indices):
            return pixels[indices], torch.tensor(indices).clamp(max=1)

    class Streamed(ImageDataModule):
        def load_sets(self, part):
            return {part: Read()}

    data = Streamed(num_classes=2, image_size=8, batch_size=6)
    data.setup("test")  # measures the training images all the same
    assert sizes(data) == [20, 0, 20]
    torch.testing.assert_close(torch.tensor(data.mean), pixels.float().mean((0, 2, 3)) / 255)
    torch.testing.assert_close(torch.tensor(data.std), pixels.float().std((0, 2, 3), unbiased=False) / 255)
    assert numbers_in(data.examples("test", 2)) == [0, 10]
    assert len({n for batch in data.train_dataloader() for n in numbers_in(batch)}) == 18


# Augmentation and normalisation


def test_training_batches_are_augmented_before_and_after_the_normalisation_in_order():
    data = ready(augment={"cutout": Cutout(4), "none": None, "light": v2.ColorJitter(0.9), "mix": MixUp()})
    names = [[type(t).__name__ for t in part] for part in (data.before_normalize, data.after_normalize)]
    assert names == [["PerImage"], ["Cutout", "MixUp"]]
    images, labels = data.augment(*next(iter(data.train_dataloader())))
    assert (images.dtype, images.shape, labels.shape) == (torch.float32, (10, 3, 8, 8), (10, 4))


@pytest.mark.parametrize("options", [{}, {"resize": 20}])
def test_a_larger_image_size_is_reached_after_the_augmentation_and_resize_before_it(options):
    data = ready(image_size=16, augment={"crop": RandomCrop(0, size=16 if options else 8)}, **options)
    images, labels = numbered(range(10)), torch.zeros(10).long()
    assert data.augment(images, labels)[0].shape == data.preprocess(images).shape == (10, 3, 16, 16)


def test_a_crop_of_a_resized_image_stays_as_it_is_and_without_one_the_centre_is_cut():
    images, labels = torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8), torch.zeros(10).long()
    crop = RandomCrop(0, size=16)
    data = ready(image_size=16, resize=20, augment={"crop": crop})
    cut, _ = crop(TF.resize(images, [20], antialias=True), labels, Draw(10))
    assert torch.equal(data.augment(images, labels)[0], data.preprocess.normalise(cut))
    data = ready(image_size=16, resize=20)
    assert torch.equal(data.augment(images, labels)[0], data.preprocess(images))


@pytest.mark.parametrize(
    ("given", "mean", "std"),
    [
        ({}, 0.5, 0.5),
        ({"mean": "imagenet"}, 0.485, 0.229),
        ({"mean": "half", "std": "imagenet"}, 0.5, 0.229),
        ({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}, 0.1, 1.0),
    ],
)
def test_mean_and_std_by_name_by_number_or_the_data_sets_own_or_those_of_pretrained_weights(given, mean, std):
    data = ready("fit", **given)
    assert (data.mean[0], data.std[0]) == (mean, std)
    assert len(data.mean) == len(data.std) == data.preprocess.channels == 3
    data.normalise_by([0.1] * 3, [0.2] * 3)
    torch.testing.assert_close(data.preprocess(numbered([51])), torch.full((1, 3, 8, 8), 0.5))


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 81}, r"data\.batch_size=81 is more than the 80 training images; lower it to 80"),
        ({"batch_size": 50, "rank": 0, "world": 2}, r"batch_size=50 on each of 2 processes .* lower it to 40"),
        ({"folds": 5}, r"data\.fold=None is out of range; choose 0 to 4"),
        ({"folds": 5, "fold": 5}, r"data\.fold=5 is out of range; choose 0 to 4"),
        ({"folds": 5, "fold": -1}, r"data\.fold=-1 is out of range; choose 0 to 4"),
        ({"folds": 101, "fold": 0}, r"data\.folds=101 is more than the 100 training images"),
        ({"fold": 0}, r"data\.fold=0 is out of range; it is one of data\.folds, which is to be set too"),
        ({"store": "device", "num_workers": 2}, r"set data\.num_workers=0"),
        ({"num_classes": 5}, r"data\.num_classes=5, but the data set has 4 classes; set data\.num_classes=4"),
        ({"limit": 3}, r"data\.limit=3 is less than an image for each of 4 classes"),
        ({"limit": 3, "num_classes": None}, r"data\.limit=3 is less than an image for each of 4 classes"),
        ({"channels": 1}, r"load_train: .* data\.channels=1 is for grey ones: set data\.channels=3"),
        ({"resize": 6}, r"data\.resize=6 must be at least data\.image_size=8"),
        ({"mean": "cifar"}, r"data\.mean='cifar': choose three numbers, imagenet, half, or null"),
        ({"std": [0.1, 0.2]}, r"data\.std=\[0\.1, 0\.2\]: choose three numbers above 0"),
        ({"std": [0.1, 0.0, 0.1]}, r"data\.std=.* above 0"),
    ],
)
def test_mistakes_get_one_clear_message(options, message):
    with pytest.raises(ValueError, match=message):
        ready(**options)


IMAGES = numbered(range(100))
CHANNELS_LAST = IMAGES.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.numpy(), LABELS, r"images must be a tensor, not ndarray; torch\.as_tensor\(images\)"),
        (IMAGES / 255, LABELS, r"not torch\.float32 \(100, 3, 8, 8\); \(images \* 255\)\.round\(\)\.byte\(\)"),
        (CHANNELS_LAST, LABELS, r"not torch\.uint8 \(100, 8, 8, 3\); images\.permute\(0, 3, 1, 2\)"),
        (IMAGES[:, 0], LABELS, r"not torch\.uint8 \(100, 8, 8\); images\.unsqueeze\(1\)"),
        (IMAGES[:0], LABELS[:0], r"not torch\.uint8 \(0, 3, 8, 8\); the split is empty"),
        (IMAGES, LABELS.tolist(), r"labels must be a tensor, not list; torch\.as_tensor\(labels\)"),
        (IMAGES, LABELS + 1, r"int64 \(100,\) of 0 to 3, .*; they are 1 to 4: labels - 1"),
        (IMAGES, LABELS - 1, r"int64 \(100,\) of 0 to 3, .*; they are -1 to 2: see self\.classes"),
        (IMAGES, LABELS * 2, r"; they are 0 to 6: see self\.classes"),
        (IMAGES, LABELS.int(), r"not torch\.int32 \(100,\); labels\.long\(\)"),
        (IMAGES, LABELS.float(), r"not torch\.float32 \(100,\); labels\.long\(\)"),
        (IMAGES, LABELS[:90], r"not torch\.int64 \(90,\); each image needs its own"),
        (IMAGES, LABELS[:, None], r"zeros and ones \(100, 4\), not torch\.int64 \(100, 1\); .*labels\.flatten\(\)"),
        (
            IMAGES,
            torch.full((100, 4), 0.5),
            r"zeros and ones \(100, 4\), not torch\.float32 \(100, 4\); labels\.argmax",
        ),
    ],
)
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_data_set_of_ones_own_is_told_what_is_wrong_with_it_and_what_to_do(
    monkeypatch, part, images, labels, message
):
    monkeypatch.setattr(Numbered, f"load_{part}", lambda self: (images, labels))
    with pytest.raises(ValueError, match=rf"^Numbered\.load_{part}: .*{message}"):
        ready()


def test_a_data_set_without_classes_or_of_images_alone_is_refused(monkeypatch):
    monkeypatch.setattr(Numbered, "load_test", lambda self: IMAGES)
    with pytest.raises(ValueError, match=r"Numbered\.load_test must return \(images, labels\), not Tensor"):
        ready("test")
    data = Numbered()
    data.classes = []
    with pytest.raises(ValueError, match=r"Numbered\.load_train sets no classes; self\.classes = "):
        data.setup("fit")


def test_classes_that_the_config_leaves_open_are_counted():
    assert ready("fit", num_classes=None).num_classes == 4


# Grey images


class Grey(Numbered):
    own_mean = own_std = None

    def load_train(self):
        return IMAGES[:, :1], LABELS


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images_are_held_with_one_channel_and_repeated_when_fetched(channels):
    data = Grey(channels=channels, augment={"crop": RandomCrop(2), "cutout": Cutout(2), "mix": MixUp()})
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert data._sets["train"].images.shape == (100, 1, 8, 8)
    assert (images.shape, images.dtype) == ((10, channels, 8, 8), torch.uint8)
    assert (images == images[:, :1, :1, :1]).all()
    assert data.augment(images, labels)[0].shape == (10, channels, 8, 8)
    pixels = torch.tensor(everything(data, "train")[0]).double() / 255
    torch.testing.assert_close(data.mean, [pixels.mean().item()] * channels)
    torch.testing.assert_close(data.std, [pixels.std(unbiased=False).item()] * channels)


def test_with_one_channel_mean_and_std_are_one_number():
    data = Grey(channels=1, mean="half")
    data.setup("fit")
    assert (data.mean, data.std) == ([0.5], [0.5])
    torch.testing.assert_close(data.preprocess(IMAGES[51:52, :1]), torch.full((1, 1, 8, 8), 51 / 127.5 - 1))
    with pytest.raises(ValueError, match=r"data\.mean='imagenet': choose one number, imagenet, half, or null"):
        Grey(channels=1, mean="imagenet").setup("fit")


# Multi-label


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.bool])
def test_labels_of_zeros_and_ones_are_kept_as_floats_and_padding_is_minus_one_throughout(monkeypatch, dtype):
    several = torch.rand(100, 4, generator=torch.Generator().manual_seed(0)) < 0.3
    monkeypatch.setattr(Numbered, "load_train", lambda self: (IMAGES, several.to(dtype)))
    data = ready("fit", augment={"mix": MixUp()})
    numbers, labels = everything(data, "train")
    assert data.multilabel
    assert labels.dtype == torch.float32
    assert torch.equal(labels, several[numbers].float())
    assert torch.equal(data.class_counts(), several[numbers].sum(0))
    assert sorted(numbers + everything(data, "val")[0]) == list(range(100))
    assert sizes(ready(limit=20, batch_size=4)) == [16, 4, 20]
    _, padded = data._sets["val"].__getitems__([0, -1])
    assert padded[1].tolist() == [-1] * 4
    _, mixed = data.augment(IMAGES[:10], labels[:10])
    assert (mixed.shape, mixed.dtype) == ((10, 4), torch.float32)
    with pytest.raises(ValueError, match=r"data\.balance=true needs images of one class each"):
        ready("fit", balance=True)
    assert not ready("test").multilabel


# Balanced draws


def test_a_balanced_epoch_is_as_long_and_shows_every_class_equally_often_and_every_image_sometimes():
    data = ready("fit", balance=True)
    assert data.class_counts().tolist() == [32, 24, 16, 8]
    sampler = data.train_dataloader().sampler
    drawn = []
    for epoch in range(60):
        sampler.set_epoch(epoch)
        rows = torch.tensor(list(sampler))
        assert data._sets["train"].labels[rows].bincount().tolist() == [20] * 4
        drawn.append(rows)
    assert not torch.equal(drawn[0].sort().values, drawn[1].sort().values)
    counts = torch.cat(drawn).bincount(minlength=80).reshape(-1)
    for label, size in enumerate([32, 24, 16, 8]):  # binomial: 1,200 draws of one in `size`
        own, expected = counts[data._sets["train"].labels == label], 1200 / size
        assert (own - expected).abs().max() < 5 * expected**0.5


def test_an_epoch_of_files_goes_from_one_to_the_next_and_mixes_a_window_of_them_from_the_first_batch_on():
    chunks = torch.arange(20).repeat_interleave(50)
    orders = [by_chunks(torch.arange(1000), chunks, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    generator = torch.Generator().manual_seed(0)
    mixed = by_chunks(torch.randperm(1000, generator=generator), chunks, generator)
    for order in (*orders, mixed):
        assert sorted(order.tolist()) == list(range(1000))
        parts = [set(part.tolist()) for part in chunks[order].split(WINDOW * 50)]
        assert [len(part) for part in parts] == [8, 8, 4]
        assert set.union(*parts) == set(range(20))
    assert set(chunks[orders[0]][:400].tolist()) != set(chunks[orders[1]][:400].tolist())
    assert len(set(chunks[mixed][:60].tolist())) == WINDOW


def test_a_class_without_images_is_not_drawn_and_takes_no_share():
    labels = torch.tensor([0] * 5 + [2] * 2)
    sampler = TrainSampler(Labelled(labels), lambda: None, 1, True, rank=0, num_replicas=1)
    assert labels[list(sampler)].bincount().tolist() == [4, 0, 3]


class Labelled:
    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)


@pytest.mark.parametrize("world", [2, 4])
def test_balanced_batches_of_all_processes_together_are_those_of_one(world):
    whole = [numbers_in(batch) for batch in ready(balance=True, batch_size=16).train_dataloader()]
    assert len({n for batch in whole for n in batch}) < 80
    for rank in range(world):
        data = ready(rank=rank, world=world, batch_size=16 // world, balance=True)
        assert [numbers_in(batch) for batch in data.train_dataloader()] == [batch[rank::world] for batch in whole]


@pytest.mark.parametrize(("split", "message"), [("val", "no validation images"), ("dev", "'train', 'val' or 'test'")])
def test_evaluating_on_a_split_that_does_not_exist_is_refused(split, message):
    data = ready(val_size=0)
    data.eval_split = split
    with pytest.raises(ValueError, match=message):
        data.test_dataloader()


# With a Trainer


class Recorder(LightningModule):
    """Learns nothing much and remembers every training batch it was given; fails at a step if told to."""

    def __init__(self, one_cycle=False, fails_at=None):
        super().__init__()
        self.scale, self.one_cycle, self.fails_at = torch.nn.Parameter(torch.ones(())), one_cycle, fails_at
        self.batches = []

    def training_step(self, batch, batch_idx):
        if self.global_step == self.fails_at:
            raise InterruptedError
        self.batches.append((self.current_epoch, batch_idx, batch[0].clone(), batch[1].clone()))
        return (self.scale * batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.01)
        if not self.one_cycle:
            return optimizer
        steps = int(self.trainer.estimated_stepping_batches)  # makes Lightning ask for the loader before it resumes
        return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)]


def fit(folder, checkpoint=None, save=None, model=None, data=None, **options):
    """The training batches; `save` says when checkpoints are written to `folder`."""
    model = model or Recorder()
    trainer = Trainer(
        **{"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False},
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **save)] if save else [],
        enable_checkpointing=bool(save),
        **options,
    )
    try:
        trainer.fit(model, augmented(**data or {}), ckpt_path=checkpoint)
    except InterruptedError:
        trainer.save_checkpoint(folder / "failed.ckpt")
    return model.batches


def augmented(**options):
    return Numbered(**{"batch_size": 20, "augment": {"crop": RandomCrop(2), "flip": AlternatingFlip()}} | options)


def assert_same(batches, others):
    torch.testing.assert_close(batches, others, rtol=0, atol=0)


@pytest.mark.parametrize("one_cycle", [False, True], ids=["plain", "one-cycle"])
@pytest.mark.parametrize("length", [{"max_epochs": 3}, {"max_steps": 12, "max_epochs": -1}], ids=["epochs", "steps"])
@pytest.mark.parametrize(
    "save",
    [
        {"every_n_train_steps": 1},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    ],
    ids=["step", "epoch", "validation"],
)
def test_a_resumed_run_goes_on_with_the_very_next_batch(tmp_path, one_cycle, length, save):
    whole = fit(tmp_path, model=Recorder(one_cycle), save=save, **length)
    assert len(whole) == 12
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert checkpoints
    for checkpoint in checkpoints:
        done = int(checkpoint.stem.removeprefix("step="))
        assert_same(fit(tmp_path, checkpoint, model=Recorder(one_cycle), **length), whole[done:])


@pytest.mark.parametrize("done", [4, 6], ids=["between epochs", "in the middle of one"])
def test_a_resumed_run_with_workers_goes_on_with_the_very_next_batch(tmp_path, done):
    whole = fit(tmp_path, model=Recorder(True), save={"every_n_train_steps": 2}, max_epochs=3)
    checkpoint = tmp_path / f"step={done}.ckpt"
    assert_same(fit(tmp_path, checkpoint, model=Recorder(True), data={"num_workers": 1}, max_epochs=3), whole[done:])


def test_a_step_that_failed_is_done_again_after_a_resume(tmp_path):
    whole = fit(tmp_path, max_epochs=2)
    assert len(fit(tmp_path, model=Recorder(fails_at=6), max_epochs=2)) == 6
    assert_same(fit(tmp_path, tmp_path / "failed.ckpt", max_epochs=2), whole[6:])


def test_a_balanced_run_goes_on_with_the_very_next_batch_in_mid_epoch(tmp_path):
    options = {"data": {"balance": True}, "max_epochs": 2}
    whole = fit(tmp_path, save={"every_n_train_steps": 1}, **options)
    assert len(whole) == 8
    for done in (2, 5):
        assert_same(fit(tmp_path, tmp_path / f"step={done}.ckpt", **options), whole[done:])


@pytest.mark.filterwarnings("error:.*train dataloader shuffling")
def test_overfitting_on_a_few_batches_repeats_the_same_images_which_are_of_all_classes(tmp_path):
    batches = fit(tmp_path, data={"augment": None}, overfit_batches=2, max_epochs=2)
    assert len(batches) == 4
    assert torch.equal(batches[0][2], batches[2][2])
    assert sorted(set(batches[0][3].tolist())) == [0, 1, 2, 3], "though the images come class after class"


def test_a_validation_on_a_few_batches_is_on_images_of_all_classes_and_a_whole_one_in_order():
    shown = {}
    for limit in (1.0, 1, 0.5):
        data = Numbered(val_size=60)
        data.trainer = Trainer(accelerator="cpu", limit_val_batches=limit, logger=False, enable_checkpointing=False)
        data.setup()
        shown[limit, type(limit)] = [numbers_in(batch) for batch in data.val_dataloader()]
    whole, one, half = shown.values()
    in_order, mixed = (list(itertools.chain(*batches)) for batches in (whole, one))
    assert in_order == sorted(mixed)
    assert one == half != whole
    assert len(set(LABELS[one[0]].tolist())) > 2 > len(set(LABELS[whole[0]].tolist()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_kept_on_the_gpu_give_the_same_batches_as_on_the_cpu(tmp_path):
    options = {"accelerator": "gpu", "devices": 1, "max_steps": 1}
    augment = {"crop": RandomCrop(2), "flip": AlternatingFlip(), "mix": MixUp()}
    (mine,), (theirs,) = (fit(tmp_path, data={"augment": augment, "store": s}, **options) for s in ("device", "cpu"))
    torch.testing.assert_close(mine, theirs)


# Digits


def digits(side, seed=0):
    data = Digits(num_classes=10, image_size=side, batch_size=64, val_size=0, split_seed=seed, seed=seed)
    data.setup()
    return data


def test_digits_are_scikit_learns_pixels_split_into_1437_and_always_the_same_360():
    data = digits(8)
    train, test = (data.examples(split, 1797)[0] for split in ("train", "test"))
    assert (len(train), len(test), data.classes) == (1437, 360, list("0123456789"))
    assert data.examples("test", 360)[1].bincount().min() >= 34
    assert torch.equal(test, digits(8, seed=1).examples("test", 360)[0])
    assert digits(32).examples("test", 1)[0].shape == (1, 3, 32, 32)
    both = torch.cat([train, test])
    assert (both[:, 0] == both[:, 2]).all()
    one = Digits(num_classes=10, image_size=8, batch_size=64, channels=1)
    one.setup("test")
    assert torch.equal(one.examples("test", 360)[0], test[:, :1])
    original = sorted((x / 16 * 255).round().astype("uint8").tobytes() for x in load_digits().images)
    assert sorted(x[0].numpy().tobytes() for x in both) == original
