"""Batched colour, geometry and policies against torchvision's, image by image."""

import math
import pickle

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from src.data import colour, geometry, policies
from src.data.draw import Draw

COUNT = 24


def pictures(channels: int = 3, height: int = 11, width: int = 14, count: int = COUNT) -> Tensor:
    """Noise of all contrasts, smooth images, and some of one colour, black and white among them."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.rand(count, channels, height, width, generator=generator)
    images = (noise * torch.linspace(10, 255, count).view(-1, 1, 1, 1)).byte()
    images[:6] = TF.gaussian_blur(images[-6:], [5, 5])
    for number, level in enumerate((0, 77, 255)):
        images[number] = level
    images[3, :, :, :7] = 200
    return images


def numbers(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, COUNT)[torch.randperm(COUNT, generator=torch.Generator().manual_seed(2))]


def assert_alike(ours: Tensor, theirs: list[Tensor], levels: int = 0) -> None:
    reference = torch.stack(theirs)
    assert (ours.dtype, ours.shape) == (torch.uint8, reference.shape)
    assert (ours.int() - reference.int()).abs().max() <= levels


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high", "levels"),
    [
        (colour.brightness, TF.adjust_brightness, 0, 2.5, 0),
        (colour.contrast, TF.adjust_contrast, 0, 2.5, 1),
        (colour.saturation, TF.adjust_saturation, 0, 2.5, 1),
        (colour.sharpness, TF.adjust_sharpness, 0, 2.5, 1),
        (colour.hue, TF.adjust_hue, -0.5, 0.5, 1),
        (colour.solarize, TF.solarize, 0, 255, 0),
    ],
)
def test_a_colour_operation_gives_each_image_what_torchvision_gives_it(ours, theirs, low, high, levels, channels):
    images, factors = pictures(channels), numbers(low, high)
    expected = [theirs(image, float(factor)) for image, factor in zip(images, factors, strict=True)]
    before = images.clone()
    assert_alike(ours(images, factors), expected, levels)
    assert torch.equal(images, before)  # the input is left alone


@pytest.mark.parametrize("channels", [3, 1])
def test_posterize_keeps_the_highest_bits(channels):
    images, bits = pictures(channels), torch.arange(COUNT) % 9
    expected = [TF.posterize(image, int(each)) for image, each in zip(images, bits, strict=True)]
    assert_alike(colour.posterize(images, bits.float()), expected)


@pytest.mark.parametrize(("channels", "size"), [(3, 3), (1, 5), (3, 9)])
def test_a_blur_is_torchvisions_with_the_deviation_of_each_image(channels, size):
    images, sigmas = pictures(channels), numbers(0.1, 3)
    expected = [TF.gaussian_blur(image, [size, size], [float(s)]) for image, s in zip(images, sigmas, strict=True)]
    assert_alike(colour.blur(images, sigmas, size), expected, 1)


@pytest.mark.parametrize(("interpolation", "levels"), [("nearest", 0), ("bilinear", 1)])
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 11, 14), (1, 12, 12)])
def test_an_affine_map_is_torchvisions_for_all_its_parameters(interpolation, levels, channels, height, width):
    images = pictures(channels, height, width)
    generator = torch.Generator().manual_seed(3)
    angle, right, down, scale, shear_x, shear_y = torch.rand(6, COUNT, generator=generator) * 2 - 1
    angle, right, down, scale = angle * 180, (right * 5).round(), (down * 5).round(), 1 + scale / 2
    move, shear = torch.stack([right, down], 1), torch.stack([shear_x, shear_y], 1)
    ours = geometry.affine(images, angle, move, scale, shear, interpolation)
    expected = [
        TF.affine(
            image, angle=float(angle[i]), translate=[float(right[i]), float(down[i])], scale=float(scale[i]),
            shear=[math.degrees(math.atan(shear_x[i])), math.degrees(math.atan(shear_y[i]))],
            interpolation=v2.InterpolationMode(interpolation),
        )
        for i, image in enumerate(images)
    ]  # fmt: skip
    assert_alike(ours, expected, levels)


def theirs_by_name(image: Tensor, name: str, magnitude: float, interpolation: str = "nearest") -> Tensor:
    """What torchvision's policies do."""
    mode = v2.InterpolationMode(interpolation)
    return v2.RandAugment()._apply_image_or_video_transform(image, name, magnitude, mode, {torch.Tensor: None})


def magnitude_of(space: dict, name: str, level: int, bins: int, negative: bool, size: tuple[int, int]) -> float:
    of, signed = space[name]
    values = of(bins, *size)
    return 0.0 if values is None else float(values[level]) * (-1 if signed and negative else 1)


SIZE = (33, 41)  # odd: turned by 45 degrees, no pixel's place is half way between two


def test_trivial_augment_draws_evenly_and_does_to_each_image_what_torchvisions_does():
    images = pictures(3, *SIZE, count=600)
    out, _ = policies.TrivialAugmentWide()(images, torch.zeros(600), Draw(600))
    again, space = Draw(600), v2.TrivialAugmentWide._AUGMENTATION_SPACE
    chosen, level, sign = again.integers(14), again.integers(31), again.integers(2)
    drawn = [(list(space)[c], int(n), s == 0) for c, n, s in zip(chosen, level, sign, strict=True)]
    expected = [
        theirs_by_name(image, name, magnitude_of(space, name, level, 31, negative, SIZE))
        for image, (name, level, negative) in zip(images, drawn, strict=True)
    ]
    assert_alike(out, expected, 1)
    assert len({name for name, _, _ in drawn}) == 14
    assert chosen.bincount().min() > 25  # 43 expected, deviation 6


@pytest.mark.parametrize("channels", [3, 1])
def test_rand_augment_does_two_operations_at_its_magnitude(channels):
    images = pictures(channels, *SIZE, count=300)
    out, _ = policies.RandAugment(magnitude=14)(images, torch.zeros(300), Draw(300))
    again, space, expected = Draw(300), v2.RandAugment._AUGMENTATION_SPACE, list(images)
    for _ in range(2):
        chosen, sign = again.integers(14), again.integers(2)
        names = [list(space)[c] for c in chosen]
        levels = [magnitude_of(space, name, 14, 31, s == 0, SIZE) for name, s in zip(names, sign, strict=True)]
        expected = [theirs_by_name(*each) for each in zip(expected, names, levels, strict=True)]
    assert_close_enough(out, expected)


@pytest.mark.parametrize("policy", ["cifar10", "imagenet"])
def test_auto_augment_does_the_pairs_of_its_policy_with_their_probabilities(policy):
    images = pictures(3, *SIZE, count=400)
    out, _ = policies.AutoAugment(policy)(images, torch.zeros(400), Draw(400))
    reference = v2.AutoAugment(v2.AutoAugmentPolicy(policy))
    again, expected = Draw(400), list(images)
    pairs = [reference._policies[n] for n in again.integers(25)]
    for step in range(2):
        happens, sign = again.uniform(), again.integers(2)
        for i, pair in enumerate(pairs):
            name, probability, level = pair[step]
            if happens[i] < probability:
                magnitude = magnitude_of(reference._AUGMENTATION_SPACE, name, level or 0, 10, sign[i] == 0, SIZE)
                expected[i] = theirs_by_name(expected[i], name, magnitude)
    assert_close_enough(out, expected)


def assert_close_enough(ours: Tensor, theirs: list[Tensor]) -> None:
    """A level of difference after one operation is more after the next: equalize, solarize and posterize make jumps."""
    apart = (ours.int() - torch.stack(theirs).int()).abs()
    assert (apart > 1).float().mean() < 0.002
    assert (apart.flatten(1).max(1).values <= 1).float().mean() > 0.95


def test_augmix_mixes_chains_of_torchvisions_operations():
    images = pictures(3, *SIZE, count=60)
    out, _ = policies.AugMix(severity=10)(images, torch.zeros(60), Draw(60))
    again, space = Draw(60), v2.AugMix._AUGMENTATION_SPACE
    names = [name for name in policies.NAMES if name in space]
    mixed, shares = again.uniform(), -(1 - again.uniform(3)).log()
    shares = shares / shares.sum(1, keepdim=True)
    expected = [(1 - mixed[i]) * image for i, image in enumerate(images)]
    for width in range(3):
        chains, depth = list(images), again.integers(3) + 1
        for step in range(3):
            chosen, level, sign = again.integers(13), again.integers(10), again.integers(2)
            for i in range(60):
                if step < depth[i]:
                    name = names[chosen[i]]
                    magnitude = magnitude_of(space, name, int(level[i]), 10, sign[i] == 0, SIZE)
                    chains[i] = theirs_by_name(chains[i], name, magnitude, "bilinear")
        expected = [e + mixed[i] * shares[i, width] * chains[i] for i, e in enumerate(expected)]
    assert_close_enough(out, [e.round().byte() for e in expected])


@pytest.mark.parametrize(
    "order_of", [{"brightness": 0.5, "contrast": 0.5}, {"saturation": 0.9, "hue": 0.5}, {"brightness": 3, "hue": 0.1}]
)
def test_color_jitter_draws_factors_and_their_order_for_each_image(order_of):
    images = pictures(3, *SIZE, count=100)
    out, _ = policies.ColorJitter(**order_of)(images, torch.zeros(100), Draw(100))
    again, expected = Draw(100), list(images)
    theirs = [getattr(TF, f"adjust_{name}") for name in order_of]
    low, high = torch.tensor([getattr(v2.ColorJitter(**order_of), name) for name in order_of]).T
    factors = low + (high - low) * again.uniform(2)
    order = again.uniform(2).argsort(1)
    for i in range(100):
        for step in order[i]:
            expected[i] = theirs[step](expected[i], float(factors[i, step]))
    assert_alike(out, expected, 4)  # two operations, each to within a level
    assert 30 < order[:, 0].sum() < 70


def test_rotation_and_affine_keep_to_their_ranges():
    images = pictures(3, 20, 30, count=400)
    out, _ = geometry.RandomRotation(25)(images, torch.zeros(400), Draw(400))
    angles = (2 * Draw(400).uniform(4)[:, 0] - 1) * 25
    assert_alike(out, [TF.rotate(image, -float(a)) for image, a in zip(images, angles, strict=True)])
    assert angles.min() < -24 < 24 < angles.max()

    out, _ = geometry.RandomAffine(10, (0.1, 0.2), (0.8, 1.2), 15)(images, torch.zeros(400), Draw(400))
    again = Draw(400)
    angle, right, down, shear = (2 * again.uniform(4) - 1).T
    scale = 0.8 + 0.4 * again.uniform()
    expected = [
        TF.affine(image, float(a) * 10, [round(float(r) * 3), round(float(d) * 4)], float(s), [float(h) * 15, 0.0])
        for image, a, r, d, s, h in zip(images, angle, right, down, scale, shear, strict=True)
    ]
    assert_alike(out, expected)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(
    ("name", "magnitude", "theirs"),
    [
        ("Posterize", 3, lambda x: TF.posterize(x, 3)),
        ("Solarize", 0.5, lambda x: TF.solarize(x, 127.5)),
        ("Equalize", 0, TF.equalize),
        ("AutoContrast", 0, TF.autocontrast),
        ("Invert", 0, TF.invert),
        ("Grayscale", 0, lambda x: TF.rgb_to_grayscale(x, len(x))),
        ("Sharpness", 1.0, lambda x: TF.adjust_sharpness(x, 2.0)),
    ],
)
def test_a_random_operation_is_done_to_the_images_whose_draw_is_below_p(name, magnitude, theirs, channels):
    images = pictures(channels)
    out, _ = policies.RandomOperation(name, magnitude, p=0.4)(images, torch.zeros(COUNT), Draw(COUNT))
    chosen = Draw(COUNT).uniform() < 0.4
    assert_alike(out, [theirs(image) if c else image for image, c in zip(images, chosen, strict=True)], 1)
    assert 2 < chosen.sum() < COUNT - 2


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (policies.RandomOperation, {"operation": "Blur"}, "'Blur' is unknown; choose one of Identity, ShearX"),
        (geometry.RandomRotation, {"degrees": 9, "interpolation": "cubic"}, "cubic"),
    ],
)
def test_mistakes_get_one_clear_message(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)(pictures(), torch.zeros(COUNT), Draw(COUNT))


def test_the_policies_go_to_other_processes():
    for transform in (policies.TrivialAugmentWide(), policies.AutoAugment(), policies.ColorJitter(hue=0.1)):
        copied = pickle.loads(pickle.dumps(transform))
        given = pictures(), torch.zeros(COUNT)
        assert torch.equal(copied(*given, Draw(COUNT))[0], transform(*given, Draw(COUNT))[0])
