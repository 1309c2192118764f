"""The batched transforms against per-image references."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from src.data import augment, colour, geometry, mixing, policies
from src.data.draw import Draw
from src.data.preprocess import Preprocess


def pictures(count: int = 12, height: int = 10, width: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 5


def draw(count: int = 12, **options) -> Draw:
    return Draw(count, num_classes=5, **options)


@pytest.mark.parametrize(
    ("shape", "mode", "size", "padding"),
    [((10, 10), "zero", 12, 3), ((9, 14), "reflect", None, 3), ((20, 16), "zero", 8, 0)],
)
def test_random_crop_cuts_what_torchvision_cuts_from_each_image_padded_unless_it_is_larger(shape, mode, size, padding):
    images, labels = pictures(height=shape[0], width=shape[1])
    out, _ = augment.RandomCrop(padding=3, mode=mode, size=size)(images, labels, draw())
    again = draw()
    height, width = (size, size) if size else shape
    top, left = (again.integers(a + 2 * padding - b + 1) for a, b in zip(shape, (height, width), strict=True))
    for i, image in enumerate(images):
        padded = TF.pad(image, [padding], padding_mode="constant" if mode == "zero" else "reflect")
        assert torch.equal(out[i], TF.crop(padded, int(top[i]), int(left[i]), height, width))
    assert len(set(zip(top.tolist(), left.tolist(), strict=True))) > 6


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (augment.RandomCrop, {"padding": 1, "size": 13}, r"12x12 px \(padding included\) is smaller than size=13"),
        (augment.RandomCrop, {"padding": 10, "mode": "reflect"}, "padding=10 is too much to reflect at 10 px"),
    ],
)
def test_mistakes_get_one_clear_message(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)(*pictures(), draw())


@pytest.mark.parametrize(
    ("p", "dtype", "layout"),
    [
        (0.0, torch.uint8, torch.contiguous_format),
        (0.3, torch.uint8, torch.channels_last),
        (0.3, torch.float32, torch.contiguous_format),
        (1.0, torch.float64, torch.channels_last),
    ],
)
def test_random_flip_mirrors_about_that_share_and_leaves_the_rest(p, dtype, layout):
    images, labels = pictures(1000, 3, 4)
    images = images.to(dtype, memory_format=layout)
    out, _ = augment.RandomHorizontalFlip(p)(images, labels, draw(1000))
    flipped = draw(1000).uniform() < p
    expected = torch.stack([TF.hflip(x) if f else x for x, f in zip(images, flipped, strict=True)])
    assert torch.equal(out, expected)
    assert abs(flipped.float().mean() - p) < 0.05


def test_alternating_flip_turns_each_image_round_every_epoch_wherever_it_is_in_the_batch():
    images, labels = pictures(1000, 3, 4)
    index = torch.randperm(50_000, generator=torch.Generator().manual_seed(2))[:1000]
    flip = augment.AlternatingFlip()
    first, second, third = (flip(images, labels, draw(1000, epoch=e, batch=e, index=index))[0] for e in range(3))
    assert torch.equal(second, first.flip(-1))
    assert torch.equal(third, first)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(3))
    assert torch.equal(flip(images[order], labels, draw(1000, index=index[order]))[0], first[order])
    other_seed, _ = flip(images, labels, draw(1000, index=index, seed=1))
    for other in (images, other_seed):
        assert 0.45 < (first == other).all((1, 2, 3)).float().mean() < 0.55


@pytest.mark.parametrize("dense", [math.inf, 0], ids=["all at once", "one by one"])
@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("size", [7, 24, 40])
def test_random_resized_crop_equals_torchvisions_crop_and_antialiased_resize(size, channels, dense, monkeypatch):
    monkeypatch.setattr(augment, "DENSE", dense)
    images, labels = pictures(height=30, width=40)
    images = images[:, :channels]
    crop = augment.RandomResizedCrop(size)
    out, _ = crop(images, labels, draw())
    boxes = torch.stack(crop.boxes(draw(), 30, 40), 1).int().tolist()
    for i, image in enumerate(images):
        reference = TF.resized_crop(image.float(), *boxes[i], [size, size], antialias=True)
        assert (out[i] - reference).abs().max() <= (1.001 if dense == 0 else 0.501)  # rounded to uint8, by torch twice
    assert out.dtype == torch.uint8
    assert len({height for _, _, height, _ in boxes}) > 4


@pytest.mark.parametrize(("before", "after", "one_by_one"), [(32, 32, False), (256, 224, True)])
def test_random_resized_crop_takes_large_images_one_by_one(before, after, one_by_one, monkeypatch):
    images, labels = pictures(2, before, before)
    calls = []
    monkeypatch.setattr(
        augment.F, "interpolate", lambda cut, size, **_: calls.append(size) or cut.new_zeros(1, 3, *size)
    )
    out, _ = augment.RandomResizedCrop(after)(images, labels, draw(2))
    assert len(calls) == 2 * one_by_one
    assert out.shape == (2, 3, after, after)


def test_random_boxes_keep_to_their_area_and_aspect_and_lie_anywhere_inside():
    crop = augment.RandomResizedCrop(8, scale=(0.2, 0.5), ratio=(0.8, 1.25))
    top, left, height, width = crop.boxes(draw(4000), 100, 100)
    area, ratio = height * width / 1e4, width / height
    assert 0.19 < area.min() < 0.21
    assert 0.49 < area.max() < 0.51
    assert abs(area.mean() - 0.35) < 0.01
    assert 0.77 < ratio.min() < 0.83
    assert 1.2 < ratio.max() < 1.3
    for start, extent in ((top, height), (left, width)):
        assert start.min() == 0
        assert (start + extent).max() == 100
        assert abs((start / (100 - extent)).mean() - 0.5) < 0.02


def test_random_erasing_is_torchvisions_erase_of_the_images_whose_draw_is_below_p():
    images, labels = torch.randn(500, 3, 20, 30), torch.zeros(500).long()
    erasing = augment.RandomErasing(p=0.3)
    out, _ = erasing(images, labels, draw(500))
    again = draw(500)
    boxes = torch.stack(erasing.boxes(again, 20, 30), 1).int().tolist()
    erased = again.uniform() < 0.3
    for i, image in enumerate(images):
        expected = TF.erase(image, *boxes[i], v=torch.zeros(1)) if erased[i] else image
        assert torch.equal(out[i], expected)
    assert 0.25 < erased.float().mean() < 0.35


@pytest.mark.parametrize("size", [3, 4])
def test_cutout_sets_one_clipped_square_per_image_to_zero(size):
    images, labels = torch.ones(500, 3, 8, 9), torch.zeros(500).long()
    out, _ = augment.Cutout(size)(images, labels, draw(500))
    again = draw(500)
    row, column = again.integers(8), again.integers(9)
    for i in range(500):
        expected = torch.ones(3, 8, 9)
        top, left = int(row[i]) - size // 2, int(column[i]) - size // 2
        expected[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0
        assert torch.equal(out[i], expected)
    assert torch.equal(images, torch.ones_like(images))  # the input is left alone


def test_progressive_resizing_shrinks_as_torchvision_does_until_its_epoch():
    images, labels = pictures(height=32, width=32)
    resizing = augment.ProgressiveResizing(24, until=2)
    sizes = [resizing(images.float(), labels, draw(epoch=epoch))[0].shape[-2:] for epoch in range(4)]
    assert sizes == [(24, 24), (24, 24), (32, 32), (32, 32)]
    torch.testing.assert_close(resizing(images.float(), labels, draw())[0], TF.resize(images.float(), [24, 24]))


def mixed(labels, own):
    """Labels of which each has the share `own` and that of the image half a batch away the rest."""
    soft = torch.zeros(len(labels), 5)
    for i, share in enumerate(own):
        soft[i, labels[i]] += share
        soft[i, labels[i - len(labels) // 2]] += 1 - share
    return soft


def test_mixup_blends_images_and_labels_by_the_same_weight_and_they_can_be_mixed_again():
    images, labels = torch.randn(12, 3, 4, 4), torch.arange(12) % 5
    out, soft = mixing.MixUp(0.4)(images, labels, draw())
    weight = draw().beta(0.4)
    for i in range(12):
        torch.testing.assert_close(out[i], weight[i] * images[i] + (1 - weight[i]) * images[i - 6])
    torch.testing.assert_close(soft, mixed(labels, weight))
    assert len(set(weight.tolist())) == 12
    torch.testing.assert_close(mixing.CutMix()(out, soft, draw())[1].sum(1), torch.ones(12))


def test_cutmix_pastes_a_box_and_weighs_the_labels_by_the_pixels_kept():
    images = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 3, 10, 10)
    labels = torch.arange(12) % 5
    out, soft = mixing.CutMix(1.0)(images, labels, draw())
    again = draw()
    side = (1 - again.beta(1.0)).sqrt() * 10 / 2  # half of it
    centre = torch.stack([again.integers(10), again.integers(10)])
    for i in range(12):
        top, left = (centre[:, i] - int(side[i])).clamp(min=0).tolist()
        bottom, right = (centre[:, i] + int(side[i])).clamp(max=10).tolist()
        expected = images[i].clone()
        expected[:, top:bottom, left:right] = images[i - 6, 0, 0, 0]
        assert torch.equal(out[i], expected)
    kept = (out == images).float().mean((1, 2, 3))
    torch.testing.assert_close(soft, mixed(labels, kept))
    assert len(set(kept.tolist())) > 6


class Fixed(Draw):
    """Draws worked out by hand: what `numbers` has for each kind, in turn."""

    def __init__(self, size, numbers, **options):
        super().__init__(size, num_classes=2, **options)
        self.numbers = {kind: iter(torch.tensor(each) for each in values) for kind, values in numbers.items()}

    def uniform(self, *shape):
        return next(self.numbers["uniform"])

    def integers(self, high, *shape):
        return next(self.numbers["integers"])

    def beta(self, alpha):
        return next(self.numbers["beta"])


# Four images of 2x2 px, all 0, 1, 2 and 3; half a batch away are 2, 3, 0 and 1. The classes are 0, 0, 1 and 1.
FLAT = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2)
OF_TWO = torch.tensor([0, 0, 1, 1])


def test_mixup_mixes_the_images_whose_draw_is_below_p():
    numbers = {"beta": [[0.75, 0.75, 0.5, 0.5]], "uniform": [[0.2, 0.9, 0.3, 0.8]]}
    out, labels = mixing.MixUp(p=0.4)(FLAT, OF_TWO, Fixed(4, numbers))
    assert out[:, 0, 0, 0].tolist() == [0.5, 1, 1, 3]  # 0.75 * 0 + 0.25 * 2; as it was; (2 + 0) / 2; as it was
    assert labels.tolist() == [[0.75, 0.25], [1, 0], [0.5, 0.5], [0, 1]]


def test_mixup_or_cutmix_cuts_the_images_whose_draw_is_below_switch_and_blends_the_others():
    # A box's sides are sqrt(1 - 0) = the whole image's 2 px; around its pixel (1, 1) it is clipped to nothing less,
    # around (0, 0) to the first pixel.
    numbers = {
        "beta": [[0.75] * 4, [0.0] * 4],
        "integers": [[1, 0, 0, 1], [1, 0, 0, 1]],
        "uniform": [[0.1, 0.2, 0.9, 0.9]],
    }
    out, labels = mixing.MixUpOrCutMix(switch=0.5)(FLAT, OF_TWO, Fixed(4, numbers))
    assert out[0, 0].tolist() == [[2, 2], [2, 2]]
    assert out[1, 0].tolist() == [[3, 1], [1, 1]]
    assert out[2:, 0, 0, 0].tolist() == [1.5, 2.5]  # 0.75 * 2 + 0.25 * 0, 0.75 * 3 + 0.25 * 1
    assert labels.tolist() == [[0, 1], [0.75, 0.25], [0.25, 0.75], [0.25, 0.75]]


@pytest.mark.parametrize("kind", [mixing.MixUp, mixing.CutMix, mixing.MixUpOrCutMix])
def test_mixing_ends_before_its_epoch_until(kind):
    images, labels = torch.randn(12, 3, 4, 4), torch.arange(12) % 5
    for epoch in range(4):
        out, soft = kind(until=2)(images, labels, draw(epoch=epoch))
        assert (soft is labels) == (out is images) == (epoch >= 2)
    assert kind(p=0.0)(images, labels, draw())[0].equal(images)


def test_labels_of_several_classes_are_mixed_as_they_are():
    several = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    _, labels = mixing.MixUp()(FLAT, several, Fixed(4, {"beta": [[0.75, 0.75, 0.5, 0.5]]}))
    assert labels.tolist() == [[0.75, 1], [0.25, 0], [0.5, 1], [0.5, 0]]


def test_draws_have_the_distribution_they_are_named_after():
    beta = draw(20_000).beta(0.4)
    assert abs(beta.mean() - 0.5) < 0.01
    assert abs(beta.var() - 0.25 / 1.8) < 0.005  # 1 / (4 (2 alpha + 1))
    counts = draw(9000).integers(9).bincount()
    assert len(counts) == 9
    assert counts.min() > 850  # 1,000 expected, deviation 30


@pytest.mark.parametrize("transform", [v2.ToDtype(torch.float32, scale=True), v2.ToPILImage()])
def test_a_transform_that_makes_something_else_of_uint8_is_refused(transform):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=rf"{type(transform).__name__} returns \S+ for torch.uint8; its images must stay"
    ):
        augment.PerImage(transform)(images, torch.zeros(2), Draw(2))


JITTER = augment.PerImage(v2.ColorJitter(brightness=0.9))


def test_any_torchvision_transform_draws_for_each_image_and_leaves_the_global_generator_alone():
    images, labels = pictures()
    images[:] = images[0]
    before = torch.get_rng_state()
    out, _ = JITTER(images, labels, draw())
    assert torch.equal(torch.get_rng_state(), before)
    assert len({tuple(x.flatten().tolist()) for x in out}) > 8
    for i, seed in enumerate(draw().integers(2**31).tolist()):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            assert torch.equal(out[i], JITTER.transform(images[i]))


OURS = [
    *(augment.RandomCrop(2), augment.RandomHorizontalFlip(), augment.AlternatingFlip(), augment.RandomResizedCrop(8)),
    *(augment.Cutout(3), mixing.MixUp(p=0.5), mixing.CutMix(), mixing.MixUpOrCutMix(), augment.RandomErasing()),
    augment.ProgressiveResizing(8, until=2),
    *(policies.TrivialAugmentWide(), policies.RandAugment(), policies.AutoAugment(), policies.AugMix()),
    *(policies.ColorJitter(0.4, 0.4, 0.4, 0.1), policies.RandomOperation("Equalize"), colour.GaussianBlur(3)),
    *(geometry.RandomRotation(30), geometry.RandomAffine(30, (0.1, 0.1), (0.9, 1.1), 10, interpolation="bilinear")),
]


@pytest.mark.parametrize("transform", [*OURS, JITTER], ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_draw_what_one_draws_for_the_same_images(transform, world):
    images, labels = pictures(16)
    images = images.float() if transform.after_normalize else images
    index = torch.arange(16)
    whole, whole_labels = transform(images, labels, draw(16, index=index, seed=3, epoch=1, batch=5))
    for rank in range(world):
        mine = slice(rank, None, world)
        options = {"seed": 3, "epoch": 1, "batch": 5, "rank": rank, "world": world, "index": index[mine]}
        part, part_labels = transform(images[mine], labels[mine], draw(16 // world, **options))
        torch.testing.assert_close(part, whole[mine])
        torch.testing.assert_close(part_labels, whole_labels[mine])


@pytest.mark.parametrize("transform", OURS, ids=lambda t: type(t).__name__)
def test_a_transform_works_on_the_device_of_the_images(transform):
    images, labels = pictures()  # "meta" mixes with the CPU as little as a GPU does
    images = (images.float() if transform.after_normalize else images).to("meta")
    index = torch.arange(12, device="meta")
    out, labels = transform(images, labels.to("meta"), draw(device="meta", index=index))
    assert (out.device.type, labels.device.type) == ("meta", "meta")


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"batch": 1}])
def test_another_seed_epoch_or_batch_draws_anew(change):
    assert not torch.equal(draw().uniform(), draw(**change).uniform())
    assert torch.equal(draw(**change).uniform(), draw(**change).uniform())


@pytest.mark.parametrize(
    ("shape", "size", "resize"), [((10, 10), 8, 9), ((12, 18), 8, 9), ((10, 12), 8, None), ((10, 10), 10, None)]
)
def test_preprocess_as_rebuilt_from_its_spec_resizes_cuts_the_centre_and_normalises(shape, size, resize):
    images, _ = pictures(height=shape[0], width=shape[1])
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    out = Preprocess(**Preprocess(size, mean, std, resize).spec)(images)
    for i, image in enumerate(images):
        square = TF.center_crop(TF.resize(image, [resize or size], antialias=True), [size, size])
        expected = TF.normalize(TF.to_dtype(square, torch.float32, scale=True), mean, std)
        torch.testing.assert_close(out[i], expected, rtol=1e-5, atol=1e-5)
