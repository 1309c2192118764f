"""The batched transforms against per-image references."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from src.data import augment
from src.data.augment import Draw, Preprocess


def pictures(count: int = 12, height: int = 10, width: int = 10) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count) % 5


def draw(count: int = 12, **options) -> Draw:
    return Draw(count, num_classes=5, **options)


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("shape", [(10, 10), (9, 14)])
def test_random_crop_cuts_what_torchvision_cuts_from_each_padded_image(mode, shape):
    images, labels = pictures(height=shape[0], width=shape[1])
    crop = augment.RandomCrop(padding=3, mode=mode)
    out, _ = crop(images, labels, draw())
    again = draw()
    top, left = again.integers(7), again.integers(7)
    for i, image in enumerate(images):
        padded = TF.pad(image, [3], padding_mode="constant" if mode == "zero" else "reflect")
        assert torch.equal(out[i], TF.crop(padded, int(top[i]), int(left[i]), *shape))
    assert len(set(zip(top.tolist(), left.tolist(), strict=True))) > 6


def test_random_crop_does_not_pad_an_image_that_is_larger_than_the_crop():
    images, labels = pictures(height=20, width=16)
    out, _ = augment.RandomCrop(padding=4, size=8)(images, labels, draw())
    again = draw()
    top, left = again.integers(13), again.integers(9)
    for i, image in enumerate(images):
        assert torch.equal(out[i], TF.crop(image, int(top[i]), int(left[i]), 8, 8))


def test_every_crop_position_is_equally_likely():
    images = torch.zeros(9000, 1, 4, 4, dtype=torch.uint8)
    images[:] = torch.arange(16).view(1, 1, 4, 4)  # the first pixel of a 2x2 crop tells its place
    out, _ = augment.RandomCrop(padding=0, size=2)(images, images, draw(9000))
    counts = torch.bincount(out[:, 0, 0, 0].long(), minlength=16).view(4, 4)[:3, :3]
    assert counts.sum() == 9000
    assert counts.min() > 850  # 1,000 expected, deviation 30


def test_a_crop_larger_than_the_image_says_what_to_change():
    images, labels = pictures(height=6, width=6)
    with pytest.raises(ValueError, match=r"8x8 px \(padding included\) is smaller than size=9"):
        augment.RandomCrop(padding=1, size=9)(images, labels, draw())


def test_reflecting_more_than_the_image_has_is_refused():
    images, labels = pictures(height=4, width=4)
    with pytest.raises(ValueError, match=r"padding=4 .* 4x4"):
        augment.RandomCrop(padding=4, mode="reflect")(images, labels, draw())


def test_an_unknown_padding_mode_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'mirror'.*'zero' or 'reflect'"):
        augment.RandomCrop(mode="mirror")


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_random_flip_mirrors_about_that_share_and_leaves_the_rest(p):
    images, labels = pictures(1000, 3, 4)
    out, _ = augment.RandomHorizontalFlip(p)(images, labels, draw(1000))
    flipped = draw(1000).uniform() < p
    expected = torch.stack([TF.hflip(x) if f else x for x, f in zip(images, flipped, strict=True)])
    assert torch.equal(out, expected)
    assert abs(flipped.float().mean() - p) < 0.05


def test_alternating_flip_shows_each_image_the_other_way_round_in_the_next_epoch():
    images, labels = pictures(1000, 3, 4)
    index = torch.randperm(50_000, generator=torch.Generator().manual_seed(2))[:1000]
    flip = augment.AlternatingFlip()
    first, second, third = (flip(images, labels, draw(1000, epoch=e, batch=e, index=index))[0] for e in range(3))
    assert torch.equal(second, first.flip(-1))
    assert torch.equal(third, first)
    assert 0.45 < (first == images).all((1, 2, 3)).float().mean() < 0.55


def test_alternating_flip_goes_by_image_and_seed_not_by_place_in_the_batch():
    images, labels = pictures(200, 3, 4)
    index, order = torch.arange(200), torch.randperm(200, generator=torch.Generator().manual_seed(3))
    flip = augment.AlternatingFlip()
    here, _ = flip(images, labels, draw(200, index=index))
    there, _ = flip(images[order], labels, draw(200, index=index[order], batch=7))
    assert torch.equal(here[order], there)
    other_seed, _ = flip(images, labels, draw(200, index=index, seed=1))
    assert 60 < (other_seed != here).flatten(1).any(1).sum() < 140


def test_resize_is_torchvisions():
    images, labels = pictures()
    out, _ = augment.Resize(16)(images, labels, draw())
    assert torch.equal(out, torch.stack([TF.resize(x, [16], antialias=True) for x in images]))


@pytest.mark.parametrize("size", [7, 24, 40])
def test_random_resized_crop_equals_torchvisions_crop_and_antialiased_resize(size):
    images, labels = pictures(height=30, width=40)
    crop = augment.RandomResizedCrop(size)
    out, _ = crop(images, labels, draw())
    again = draw()
    height, width = crop.boxes(again, 30, 40)
    top = (again.uniform() * (31 - height)).floor()
    left = (again.uniform() * (41 - width)).floor()
    for i, image in enumerate(images):
        box = [int(x[i]) for x in (top, left, height, width)]
        reference = TF.resized_crop(image.float(), *box, [size, size], antialias=True)
        assert (out[i] - reference).abs().max() <= 0.501  # rounded to uint8
    assert out.dtype == torch.uint8
    assert len(set(height.tolist())) > 4


def test_random_resized_crop_keeps_to_its_area_and_aspect():
    height, width = augment.RandomResizedCrop(8, scale=(0.2, 0.5), ratio=(0.8, 1.25)).boxes(draw(4000), 100, 100)
    area, ratio = height * width / 1e4, width / height
    assert 0.19 < area.min() < 0.21
    assert 0.49 < area.max() < 0.51
    assert abs(area.mean() - 0.35) < 0.01
    assert 0.77 < ratio.min() < 0.83
    assert 1.2 < ratio.max() < 1.3


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


def test_mixup_blends_images_and_labels_by_the_same_weight():
    images, labels = torch.randn(12, 3, 4, 4), torch.arange(12) % 5
    out, soft = augment.MixUp(0.4)(images, labels, draw())
    weight = draw().beta(0.4)
    for i in range(12):
        partner = (i + 6) % 12
        torch.testing.assert_close(out[i], weight[i] * images[i] + (1 - weight[i]) * images[partner])
        expected = torch.zeros(5)
        expected[labels[i]] += weight[i]
        expected[labels[partner]] += 1 - weight[i]
        torch.testing.assert_close(soft[i], expected)
    assert len(set(weight.tolist())) == 12


def test_cutmix_pastes_a_box_and_weighs_the_labels_by_the_pixels_kept():
    images = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 3, 10, 10)
    labels = torch.arange(12) % 5
    out, soft = augment.CutMix(1.0)(images, labels, draw())
    again = draw()
    side = (1 - again.beta(1.0)).sqrt() * 10 / 2  # half of it
    centre = torch.stack([again.integers(10), again.integers(10)])
    shares = []
    for i in range(12):
        partner = (i + 6) % 12
        top, left = (centre[:, i] - int(side[i])).clamp(min=0).tolist()
        bottom, right = (centre[:, i] + int(side[i])).clamp(max=10).tolist()
        expected = images[i].clone()
        expected[:, top:bottom, left:right] = partner
        assert torch.equal(out[i], expected)
        own = out[i, 0] == i
        expected = torch.zeros(5)
        expected[labels[i]] += own.float().mean()
        expected[labels[partner]] += 1 - own.float().mean()
        torch.testing.assert_close(soft[i], expected)
        shares.append(float(own.float().mean()))
    assert len(set(shares)) > 6


def test_mixed_labels_can_be_mixed_again():
    images, labels = torch.randn(12, 3, 4, 4), torch.arange(12) % 5
    images, labels = augment.MixUp()(images, labels, draw())
    _, labels = augment.CutMix()(images, labels, draw())
    torch.testing.assert_close(labels.sum(1), torch.ones(12))


@pytest.mark.parametrize("kind", [augment.MixUp, augment.CutMix])
def test_an_alpha_of_zero_is_refused(kind):
    with pytest.raises(ValueError, match=r"alpha=0\.0 must be above 0"):
        kind(alpha=0.0)


def test_beta_draws_have_the_deviation_of_the_distribution():
    numbers = draw(20_000).beta(0.4)
    assert abs(numbers.mean() - 0.5) < 0.01
    assert abs(numbers.var() - 0.25 / 1.8) < 0.005  # 1 / (4 (2 alpha + 1))


def test_any_torchvision_transform_draws_for_each_image_and_leaves_the_global_generator_alone():
    images, labels = pictures()
    images[:] = images[0]
    before = torch.get_rng_state()
    jitter = augment.PerImage(v2.ColorJitter(brightness=0.9))
    out, _ = jitter(images, labels, draw())
    assert torch.equal(torch.get_rng_state(), before)
    assert len({tuple(x.flatten().tolist()) for x in out}) > 8
    again, _ = jitter(images, labels, draw())
    assert torch.equal(out, again)


CHAIN = [
    augment.RandomCrop(2),
    augment.RandomHorizontalFlip(),
    augment.AlternatingFlip(),
    augment.RandomResizedCrop(8),
    augment.PerImage(v2.ColorJitter(brightness=0.5)),
    augment.Cutout(3),
    augment.MixUp(),
    augment.CutMix(),
]


@pytest.mark.parametrize("transform", CHAIN, ids=lambda t: type(t).__name__)
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


@pytest.mark.parametrize("transform", CHAIN, ids=lambda t: type(t).__name__)
def test_a_transform_works_on_the_device_of_the_images(transform):
    if isinstance(transform, augment.PerImage):
        pytest.skip("torchvision's own transforms are not tried without a device")
    images, labels = pictures()  # "meta" mixes with the CPU as little as a GPU does
    images = (images.float() if transform.after_normalize else images).to("meta")
    index = torch.arange(12, device="meta")
    out, labels = transform(images, labels.to("meta"), draw(device="meta", index=index))
    assert (out.device.type, labels.device.type) == ("meta", "meta")


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"batch": 1}])
def test_another_seed_epoch_or_batch_draws_anew(change):
    assert not torch.equal(draw().uniform(), draw(**change).uniform())
    assert torch.equal(draw(**change).uniform(), draw(**change).uniform())


@pytest.mark.parametrize("shape", [(10, 10), (12, 18)])
def test_preprocess_resizes_the_shorter_side_cuts_the_centre_and_normalises(shape):
    images, _ = pictures(height=shape[0], width=shape[1])
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    out = Preprocess(8, mean, std, resize=9)(images)
    for i, image in enumerate(images):
        square = TF.center_crop(TF.resize(image, [9], antialias=True), [8, 8])
        expected = TF.normalize(TF.to_dtype(square, torch.float32, scale=True), mean, std)
        torch.testing.assert_close(out[i], expected, rtol=1e-5, atol=1e-5)


def test_preprocess_leaves_images_of_the_right_size_unresized():
    images, _ = pictures()
    out = Preprocess(10, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))(images)
    torch.testing.assert_close(out, images / 127.5 - 1, rtol=1e-5, atol=1e-6)


def test_preprocess_is_rebuilt_from_its_spec():
    images, _ = pictures()
    preprocess = Preprocess(8, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), resize=9)
    assert torch.equal(Preprocess(**preprocess.spec)(images), preprocess(images))
