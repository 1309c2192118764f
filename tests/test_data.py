"""Splits, samplers, loaders and the batch's way to the model, on the bundled digits and on made-up images."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torchvision.transforms import v2

from src.data.augment import AlternatingFlip, Cutout, MixUp, RandomCrop, RandomHorizontalFlip
from src.data.datamodule import EvalSampler, ImageDataModule, ImageSet, statistics, stratified
from src.data.digits import Digits

# the number of an image is written in its pixels, so that any batch tells which images are in it
COUNTS = [40, 30, 20, 10]  # of each class


class Numbered(ImageDataModule):
    own_mean = own_std = (0.5, 0.5, 0.5)

    def __init__(self, **options):
        super().__init__(**{"num_classes": 4, "image_size": 8, "batch_size": 10, "val_size": 0.2} | options)

    def load_train(self):
        self.classes = ["a", "b", "c", "d"]
        return numbered(range(100)), torch.arange(4).repeat_interleave(torch.tensor(COUNTS))

    def load_test(self):
        self.classes = ["a", "b", "c", "d"]
        return numbered(range(100, 137)), torch.arange(37) % 4


def numbered(numbers):
    return torch.tensor(list(numbers), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()


def numbers_in(batch):
    return batch[0][:, 0, 0, 0].tolist()


def ready(stage=None, rank=None, world=1, **options):
    data = Numbered(**options)
    if rank is not None:
        root = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world, training=False, strategy=root)
    data.setup(stage)
    return data


# Splits


def test_validation_is_stratified_and_shares_no_image_with_training():
    data = ready()
    assert data.val_set.labels.bincount().tolist() == [8, 6, 4, 2]
    assert data.train_set.labels.bincount().tolist() == [32, 24, 16, 8]
    train, val = (set(s.images[:, 0, 0, 0].tolist()) for s in (data.train_set, data.val_set))
    assert not train & val
    assert train | val == set(range(100))


def test_images_and_labels_stay_together_through_the_split():
    data = ready()
    official = torch.arange(4).repeat_interleave(torch.tensor(COUNTS))
    for part in (data.train_set, data.val_set):
        assert torch.equal(official[part.images[:, 0, 0, 0].long()], part.labels)


def test_the_split_goes_by_split_seed_and_not_by_seed():
    rows = [ready(seed=seed, split_seed=split).val_set.rows.tolist() for seed, split in ((0, 0), (1, 0), (0, 1))]
    assert rows[0] == rows[1]
    assert rows[0] != rows[2]


@pytest.mark.parametrize(("val_size", "expected"), [(0.25, 25), (7, 7), (1, 1), (0.5, 50)])
def test_val_size_is_a_share_or_a_number(val_size, expected):
    data = ready(val_size=val_size)
    assert len(data.val_set) == expected
    assert len(data.train_set) == 100 - expected


def test_val_size_zero_trains_on_everything_and_has_no_validation_loader():
    data = ready(val_size=0)
    assert len(data.train_set) == 100
    assert data.val_set is None
    assert data.val_dataloader() == []


@pytest.mark.parametrize("val_size", [100, 150, 1.0, 1.5, -1, -0.1, 0.001])
def test_a_val_size_that_leaves_nothing_is_refused(val_size):
    with pytest.raises(ValueError, match=rf"data\.val_size={val_size} of 100 training images leaves .*1 to 99"):
        ready(val_size=val_size)


def test_limit_takes_a_stratified_part_of_train_and_test():
    data = ready(limit=20, batch_size=4)
    assert (len(data.train_set), len(data.val_set), len(data.test_set)) == (16, 4, 20)
    both = torch.cat([data.train_set.labels, data.val_set.labels])
    assert both.bincount().tolist() == [8, 6, 4, 2]
    assert len(ready(limit=30, batch_size=4).test_set) == 30
    assert len(ready(limit=99, batch_size=4).test_set) == 37


def test_stratified_draws_exactly_the_count_it_is_asked_for():
    labels = torch.tensor([0] * 7 + [1] * 5 + [2] * 3)
    for count in range(16):
        drawn, rest = stratified(labels, count, torch.Generator().manual_seed(0))
        assert len(drawn) == count
        assert sorted([*drawn.tolist(), *rest.tolist()]) == list(range(15))
        shares = labels[drawn].bincount(minlength=3) - torch.tensor([7, 5, 3]) * count / 15
        assert shares.abs().max() < 1


def test_the_test_images_are_not_even_read_while_training():
    data = ready("fit")
    assert not hasattr(data, "test_set")
    assert not hasattr(ready("test"), "train_set")


@pytest.mark.parametrize(("split", "expected"), [("train", 80), ("val", 20), ("test", 37)])
def test_eval_split_serves_that_split_in_order_without_augmentation(split, expected):
    data = Numbered(augment={"crop": RandomCrop(4)})
    data.eval_split = split
    data.setup("test")
    batches = list(data.test_dataloader())
    chosen = {"train": "train_set", "val": "val_set", "test": "test_set"}[split]
    numbers = [n for batch in batches for n in numbers_in(batch)]
    assert numbers == getattr(data, chosen).images[:, 0, 0, 0].tolist()
    assert len(numbers) == expected
    images, _ = data.on_after_batch_transfer(batches[0], 0)
    torch.testing.assert_close(images, batches[0][0] / 127.5 - 1)


# Loaders


def test_a_batch_is_uint8_images_and_int64_labels():
    images, labels = next(iter(ready().train_dataloader()))
    assert images.shape == (10, 3, 8, 8)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)


def test_one_epoch_shows_each_image_once_and_another_epoch_another_order():
    data = ready()
    loader = data.train_dataloader()
    first = [n for batch in loader for n in numbers_in(batch)]
    loader.sampler.set_epoch(1)
    second = [n for batch in loader for n in numbers_in(batch)]
    assert sorted(first) == sorted(second) == sorted(data.train_set.images[:, 0, 0, 0].tolist())
    assert first != second


def test_the_order_is_that_of_torchs_distributed_sampler():
    data = ready(seed=5)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(5)).tolist()
    assert list(data.train_dataloader().sampler) == order


@pytest.mark.parametrize("world", [2, 4])
def test_the_batches_of_all_processes_together_are_those_of_one(world):
    whole = [numbers_in(batch) for batch in ready(batch_size=16).train_dataloader()]
    parts = [
        [numbers_in(batch) for batch in ready(rank=rank, world=world, batch_size=16 // world).train_dataloader()]
        for rank in range(world)
    ]
    assert len(parts[0]) == len(whole)
    for step, batch in enumerate(whole):
        for rank in range(world):
            assert parts[rank][step] == batch[rank::world]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_no_test_image_counts_twice_and_every_process_has_as_many_batches(world):
    seen, lengths = [], set()
    for rank in range(world):
        data = ready(rank=rank, world=world)
        batches = list(data.test_dataloader())
        lengths.add(len(batches))
        for images, labels in batches:
            assert (images[labels < 0] == 0).all()
            seen += images[labels >= 0][:, 0, 0, 0].tolist()
    assert len(lengths) == 1
    assert sorted(seen) == list(range(100, 137))


def test_padding_marks_are_black_images_with_label_minus_one():
    images = ImageSet(numbered([7, 8, 9]), torch.tensor([2, 1, 0]))
    pixels, labels = images.__getitems__([0, -1, 2])
    assert pixels[:, 0, 0, 0].tolist() == [7, 0, 9]
    assert labels.tolist() == [2, -1, 0]
    assert list(EvalSampler(images, 1, 2)) == [1, -1]
    assert images.labels.tolist() == [2, 1, 0]


def test_workers_deliver_the_same_batches():
    here = [numbers_in(b) for b in ready().train_dataloader()]
    assert [numbers_in(b) for b in ready(num_workers=1).train_dataloader()] == here


def test_store_device_keeps_the_images_on_the_training_device_and_fetches_there():
    data = Numbered(store="device")
    root = SimpleNamespace(root_device=torch.device("meta"))  # mixes with the CPU as little as a GPU does
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, training=False, strategy=root)
    data.setup()
    assert data.train_set.store is data.val_set.store
    images, labels = next(iter(data.train_dataloader()))
    assert (images.device.type, labels.device.type) == ("meta", "meta")
    assert data.train_set.labels.device.type == "cpu"


# Augmentation and normalisation


def test_training_batches_are_augmented_before_and_after_the_normalisation_in_order():
    data = ready(augment={"cutout": Cutout(4), "none": None, "flip": RandomHorizontalFlip(), "mix": MixUp()})
    assert [type(t).__name__ for t in data.transforms] == ["RandomHorizontalFlip", "Cutout", "MixUp"]
    images, labels = data.augment(*next(iter(data.train_dataloader())))
    assert images.dtype == torch.float32
    assert images.shape == (10, 3, 8, 8)
    assert labels.shape == (10, 4)


def test_a_torchvision_transform_from_the_config_gets_a_draw_per_image():
    data = ready(augment={"jitter": v2.ColorJitter(brightness=0.9)})
    images = torch.full((10, 3, 8, 8), 100, dtype=torch.uint8)
    out, _ = data.augment(images, torch.zeros(10).long())
    assert len(out[:, 0, 0, 0].unique()) > 5


def test_a_larger_image_size_is_reached_after_the_augmentation_and_resize_before_it():
    images, labels = numbered(range(10)), torch.zeros(10).long()
    data = ready(image_size=16, augment={"crop": RandomCrop(1)})
    assert data.augment(images, labels)[0].shape == data.preprocess(images).shape == (10, 3, 16, 16)
    data = ready(image_size=16, resize=20, augment={"crop": RandomCrop(4, size=16)})
    assert data.augment(images, labels)[0].shape == data.preprocess(images).shape == (10, 3, 16, 16)


@pytest.mark.parametrize(
    ("given", "mean", "std"),
    [
        ({}, 0.5, 0.5),
        ({"mean": "imagenet"}, 0.485, 0.229),
        ({"mean": "half", "std": "imagenet"}, 0.5, 0.229),
        ({"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}, 0.1, 1.0),
    ],
)
def test_mean_and_std_by_name_by_number_or_the_data_sets_own(given, mean, std):
    data = ready("fit", **given)
    assert (data.mean[0], data.std[0]) == (mean, std)


@pytest.mark.parametrize("given", [{"mean": "cifar"}, {"std": [0.1, 0.2]}, {"std": [0.1, 0.0, 0.1]}])
def test_other_statistics_are_refused(given):
    with pytest.raises(ValueError, match=r"data\.(mean|std)="):
        ready("fit", **given)


def test_own_statistics_are_those_of_the_training_images():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(0, 50, 2)
    mean, std = statistics(images, rows)
    pixels = images[rows].double().div(255).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(mean), pixels.mean(1).float())
    torch.testing.assert_close(torch.tensor(std), pixels.std(1, unbiased=False).float())


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 81}, r"data\.batch_size=81 is more than the 80 training images; lower it to 80"),
        ({"batch_size": 0}, r"data\.batch_size=0 must be at least 1"),
        ({"store": "gpu"}, r"data\.store='gpu' is unknown; choose 'cpu' or 'device'"),
        ({"store": "device", "num_workers": 2}, r"set data\.num_workers=0"),
        ({"num_classes": 5}, r"data\.num_classes=5, but the data set has 4 classes; set data\.num_classes=4"),
        ({"limit": 3}, r"data\.limit=3 is fewer than one image for each of the 4 classes"),
        ({"resize": 6}, r"data\.resize=6 must be at least data\.image_size=8"),
    ],
)
def test_mistakes_get_one_clear_message(options, message):
    with pytest.raises(ValueError, match=message):
        ready(**options)


def test_a_batch_larger_than_the_images_of_all_processes_is_refused():
    with pytest.raises(ValueError, match=r"data\.batch_size=50 on each of 2 processes .* lower it to 40"):
        ready(rank=0, world=2, batch_size=50)


def test_evaluating_on_validation_images_that_do_not_exist_is_refused():
    data = Numbered(val_size=0)
    data.eval_split = "val"
    data.setup("test")
    with pytest.raises(ValueError, match="no validation images"):
        data.test_dataloader()


# With a Trainer


class Recorder(LightningModule):
    """Learns nothing much and remembers every training batch it was given."""

    def __init__(self, one_cycle):
        super().__init__()
        self.scale, self.one_cycle, self.batches = torch.nn.Parameter(torch.ones(())), one_cycle, []

    def training_step(self, batch, batch_idx):
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


def fit(folder, checkpoint=None, one_cycle=False, num_workers=0, save=None, **options):
    data = Numbered(augment={"crop": RandomCrop(2), "flip": AlternatingFlip()}, batch_size=20, num_workers=num_workers)
    model = Recorder(one_cycle)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, filename="{step}", save_top_k=-1, **save)] if save else [],
        enable_checkpointing=bool(save),
        **options,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*not resumable.*")
        trainer.fit(model, data, ckpt_path=checkpoint)
    return model.batches


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
    whole = fit(tmp_path, one_cycle=one_cycle, save=save, **length)
    assert len(whole) == 12
    checkpoints = sorted(tmp_path.glob("*.ckpt"))
    assert checkpoints
    for checkpoint in checkpoints:
        done = int(checkpoint.stem.removeprefix("step="))
        rest = fit(tmp_path, checkpoint, one_cycle, **length)
        assert [(e, i) for e, i, *_ in rest] == [(e, i) for e, i, *_ in whole[done:]], checkpoint.name
        for (*_, images, labels), (*_, images_, labels_) in zip(rest, whole[done:], strict=True):
            assert torch.equal(images, images_), checkpoint.name
            assert torch.equal(labels, labels_), checkpoint.name


@pytest.mark.parametrize("done", [4, 6], ids=["between epochs", "in the middle of one"])
def test_a_resumed_run_with_workers_goes_on_with_the_very_next_batch(tmp_path, done):
    whole = fit(tmp_path, one_cycle=True, save={"every_n_train_steps": 2}, max_epochs=3)
    rest = fit(tmp_path, tmp_path / f"step={done}.ckpt", one_cycle=True, num_workers=1, max_epochs=3)
    assert len(rest) == 12 - done
    for mine, theirs in zip(rest, whole[done:], strict=True):
        assert torch.equal(mine[2], theirs[2])


def test_a_step_that_failed_is_done_again_after_a_resume(tmp_path):
    whole = fit(tmp_path, max_epochs=2)

    class Fails(Recorder):
        def training_step(self, batch, batch_idx):
            if self.global_step == 6:
                raise RuntimeError("power cut")
            return super().training_step(batch, batch_idx)

    data = Numbered(augment={"crop": RandomCrop(2), "flip": AlternatingFlip()}, batch_size=20)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, max_epochs=2
    )
    with pytest.raises(RuntimeError, match="power cut"):
        trainer.fit(Fails(False), data)
    trainer.save_checkpoint(tmp_path / "failed.ckpt")
    rest = fit(tmp_path, tmp_path / "failed.ckpt", max_epochs=2)
    assert [(e, i) for e, i, *_ in rest] == [(1, 2), (1, 3)]
    for mine, theirs in zip(rest, whole[6:], strict=True):
        assert torch.equal(mine[2], theirs[2])


def test_overfitting_on_a_few_batches_repeats_the_same_images(tmp_path):
    batches = fit(tmp_path, overfit_batches=2, max_epochs=2)
    assert len(batches) == 4
    assert torch.equal(batches[0][3], batches[2][3])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_kept_on_the_gpu_give_the_same_batches_as_on_the_cpu(tmp_path):
    def first_batch(**options):
        data = Numbered(augment={"crop": RandomCrop(2), "flip": AlternatingFlip(), "mix": MixUp()}, **options)
        model = Recorder(False)
        trainer = Trainer(
            accelerator="gpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            max_steps=1,
            enable_progress_bar=False,
        )
        trainer.fit(model, data)
        return data, model.batches[0]

    data, (*_, images, labels) = first_batch(store="device")
    assert data.train_set.store.is_cuda
    _, (*_, images_, labels_) = first_batch()
    torch.testing.assert_close(images, images_)
    torch.testing.assert_close(labels, labels_)


# Digits


def digits(**options):
    return Digits(**{"num_classes": 10, "image_size": 32, "batch_size": 64} | options)


def test_digits_are_split_into_1437_and_360_and_every_image_is_in_one_part():
    data = digits(val_size=0)
    data.setup()
    assert (len(data.train_set), len(data.test_set)) == (1437, 360)
    assert data.test_set.labels.bincount().min() >= 34
    assert data.classes == list("0123456789")
    both = torch.cat([data.train_set.images, data.test_set.images]).flatten(1)
    assert len(both) == 1797
    assert data.train_set.images.shape[1:] == (3, 32, 32)


def test_the_digits_test_images_are_always_the_same():
    chosen = [digits(split_seed=s, seed=s) for s in (0, 1)]
    for data in chosen:
        data.setup()
    assert torch.equal(chosen[0].test_set.images, chosen[1].test_set.images)


def test_digits_at_their_own_size_are_scikit_learns_pixels():
    from sklearn.datasets import load_digits

    data = digits(image_size=8)
    data.setup()
    original = {bytes((x / 16 * 255).round().astype("uint8").tobytes()) for x in load_digits().images}
    assert all(bytes(x[0].numpy().tobytes()) in original for x in data.test_set.images)
    assert (data.test_set.images[:, 0] == data.test_set.images[:, 2]).all()
