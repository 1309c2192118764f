"""Corruptions against per-image references, closed forms and cases worked out by hand; a run's accuracy under them."""

import colorsys
import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from sklearn.datasets import load_sample_images
from torch import Tensor

from src import cli
from src.data.base import ImageDataModule
from src.evaluation.corruptions import ALL, CORRUPTIONS, GROUPS, Corruption, blur, chosen, corrupt, digital, weather
from src.evaluation.corruptions.draws import Draws
from src.runs.run import open_run
from tests.conftest import run_well
from tests.test_eval import evaluated

RNG = np.random.default_rng(0)


def draws(count: int = 1, seed: int = 0) -> Draws:
    """Made twice with the same arguments, it gives the same numbers twice: to the corruption and to its reference."""
    return Draws(torch.arange(count), seed)


def noise_images(count: int, height: int, width: int, channels: int = 3) -> Tensor:
    return torch.from_numpy(RNG.integers(0, 256, (count, channels, height, width), dtype=np.uint8))


def photographs(side: int, count: int = 64) -> Tensor:
    """Squares of the two photographs that come with scikit-learn, a quarter of their height, at `side` pixels."""
    tiles = []
    for photograph in load_sample_images().images:
        edge = len(photograph) // 4
        for top in range(0, len(photograph) - edge + 1, edge):
            for left in range(0, photograph.shape[1] - edge + 1, edge):
                tile = Image.fromarray(photograph[top : top + edge, left : left + edge]).resize((side, side))
                tiles.append(torch.from_numpy(np.array(tile)).permute(2, 0, 1))
    return torch.stack(tiles[:count])


def alike(x: Tensor, expected: np.ndarray, levels: float = 0.01) -> None:
    """Compares floats from 0 to 1 by levels of 255."""
    np.testing.assert_allclose(255 * x.double().numpy(), 255 * expected, atol=levels)


# The numbers


def test_numbers_depend_on_position_and_entropy_alone() -> None:
    every = Draws(torch.arange(10), 3, 1).bits(2, 7)
    some = Draws(torch.tensor([7, 2]), 3, 1).bits(2, 7)
    assert torch.equal(some, every[[7, 2]])
    others = [Draws(torch.arange(10), *entropy).bits(2, 7) for entropy in ((4, 1), (3, 2), (3, 1, 1))]
    assert not any(torch.equal(other, every) for other in others)


def test_numbers_are_uniform_and_normal_and_independent_of_their_neighbours() -> None:
    numbers = draws(200)
    uniform, normal = numbers.uniform(-2, 6, 50, 10), numbers.normal(50, 10)
    assert stats.kstest(uniform.flatten(), "uniform", (-2, 8)).pvalue > 0.01
    assert stats.kstest(normal.flatten(), "norm").pvalue > 0.01
    for rows in (normal.flatten(1), normal.flatten(1).T):  # of images, of pixels
        among = np.corrcoef(rows)[np.triu_indices(len(rows), 1)]
        assert abs(among).max() < 6 / rows.shape[1] ** 0.5
    assert set(numbers.integers(4, 500).unique().tolist()) == {0, 1, 2, 3}


def test_a_batch_is_corrupted_alike_whole_in_parts_and_dealt_to_two_processes() -> None:
    images = noise_images(10, 32, 32)
    for name in CORRUPTIONS:
        whole = Corruption(name, 5, seed=1)(images)
        parts = Corruption(name, 5, seed=1)
        assert torch.equal(torch.cat([parts(images[:3]), parts(images[3:])]), whole), name
        for rank in (0, 1):
            of_rank = Corruption(name, 5, 1, rank, 2)
            assert torch.equal(torch.cat([of_rank(part) for part in images[rank::2].split(2)]), whole[rank::2]), name


# Noise


def test_noise_has_the_mean_and_deviation_of_its_distribution() -> None:
    grey = torch.full((20, 3, 64, 64), 102, dtype=torch.uint8)  # 0.4, far enough from black and white
    for name, deviation in {"gaussian_noise": 0.1, "speckle_noise": 0.4 * 0.2, "shot_noise": (0.4 / 50) ** 0.5}.items():
        levels = corrupt(grey, name, 5, torch.arange(20)) / 255
        assert float(levels.mean()) == pytest.approx(0.4 - 0.5 / 255, abs=1e-3), name  # decimals are cut off
        assert float(levels.std()) == pytest.approx(deviation, rel=0.01), name


def test_shot_noise_counts_photons_by_poisson() -> None:
    levels = corrupt(torch.full((20, 3, 65, 65), 51, dtype=torch.uint8), "shot_noise", 5, torch.arange(20))
    counts = [(levels == level).float().mean().item() for level in (0, 85, 170)]  # of 3 photons in white
    np.testing.assert_allclose(counts, stats.poisson(0.2 * 3).pmf([0, 1, 2]), atol=0.003)


def test_impulses_are_black_and_white_in_equal_shares_and_leave_the_rest() -> None:
    levels = corrupt(torch.full((20, 3, 65, 65), 90, dtype=torch.uint8), "impulse_noise", 5, torch.arange(20))
    shares = [(levels == level).float().mean().item() for level in (0, 90, 255)]
    np.testing.assert_allclose(shares, [0.135, 0.73, 0.135], atol=0.003)


# Blur


def test_gaussian_blur_is_scipy_s_and_keeps_a_plain_image() -> None:
    images = noise_images(2, 20, 26)
    expected = ndimage.gaussian_filter(images.double().numpy() / 255, (0, 0, 1.5, 1.5), mode="nearest")
    alike(blur.gaussian(images, draws(), 1.5), expected)


def test_defocus_spreads_a_point_over_a_disk() -> None:
    point = torch.zeros(1, 1, 9, 9, dtype=torch.uint8)
    point[..., 4, 4] = 255
    cross = corrupt(point, "defocus_blur", 4, torch.arange(1))  # within 1 px: the point and its four neighbours
    assert {(y, x): int(cross[0, 0, y, x]) for _, _, y, x in cross.nonzero().tolist()} == dict.fromkeys(
        [(4, 4), (3, 4), (5, 4), (4, 3), (4, 5)], 51
    )


@pytest.mark.parametrize(("radius", "sigma"), [(0.5, 0.6), (8, 0.5), (10, 0.5)])
def test_defocus_convolves_with_a_disk_smoothed_by_three_or_five_taps(radius: float, sigma: float) -> None:
    reach, taps = (8, 1) if radius <= 8 else (10, 2)
    grid = np.arange(-reach, reach + 1)
    disk = np.array([[float(x * x + y * y <= radius * radius) for x in grid] for y in grid])
    bell = np.array([math.exp(-0.5 * (i / sigma) ** 2) for i in range(-taps, taps + 1)])
    padded = np.pad(disk / disk.sum(), taps, mode="reflect")
    kernel = ndimage.convolve(padded, np.outer(bell, bell) / bell.sum() ** 2)[taps:-taps, taps:-taps]
    images = noise_images(1, 30, 24)
    expected = [ndimage.convolve(channel.double().numpy() / 255, kernel, mode="mirror") for channel in images[0]]
    alike(blur.defocus(images, draws(), radius, sigma), np.stack(expected)[None])


def test_glass_lets_pixels_take_their_neighbours_places_one_after_another() -> None:
    images, reach, times = noise_images(3, 15, 19), 3, 2
    numbers, expected = draws(3), images.numpy().copy()
    for _ in range(times):
        moves = (numbers.integers(2 * reach, 2, 15, 19) - reach).numpy()
        for image, (dy, dx) in zip(expected, moves, strict=True):
            for h in range(15 - reach, reach, -1):
                for w in range(19 - reach, reach, -1):
                    image[:, h, w] = image[:, h + dy[h, w], w + dx[h, w]]
    assert (expected != images.numpy()).mean() > 0.2
    alike(blur.glass(images, draws(3), 0.05, reach, times), expected / 255)  # so small a sigma smooths nothing


def test_motion_is_a_weighted_mean_of_what_lies_ahead_on_a_line() -> None:
    images, angles = noise_images(2, 12, 17), torch.tensor([35.0, -115.0])
    expected = np.zeros(images.shape)
    weights = np.exp(-0.5 * (np.arange(9) / 1.5) ** 2)
    for image, out, angle in zip(images.double().numpy() / 255, expected, angles.tolist(), strict=True):
        for i, weight in enumerate(weights / weights.sum()):
            dy, dx = (math.ceil(i * f(math.radians(angle)) - 0.5) for f in (math.sin, math.cos))
            for y in range(12):
                for x in range(17):
                    out[:, y, x] += weight * image[:, min(max(y + dy, 0), 11), min(max(x + dx, 0), 16)]
    alike(blur.along_a_line(images / 255, 4, 1.5, angles), expected, levels=0.1)  # the last taps are left out


def test_zoom_is_the_mean_of_scipy_s_enlargements_of_the_middle() -> None:
    images = noise_images(2, 32, 32)
    total, factors = images.double().numpy() / 255, np.arange(1, 1.11, 0.01)
    for factor in factors:
        cut = math.ceil(32 / factor)
        top = (32 - cut) // 2
        middle = images.double().numpy()[..., top : top + cut, top : top + cut] / 255
        larger = ndimage.zoom(middle, (1, 1, factor, factor), order=1)
        top = (larger.shape[-1] - 32) // 2
        total = total + larger[..., top : top + 32, top : top + 32]
    alike(blur.zoom(images, draws(), 1.11, 0.01), total / (len(factors) + 1), levels=0.05)


# Weather


def test_snow_falls_twice_on_an_image_that_grows_pale() -> None:
    images, numbers = noise_images(2, 24, 24), draws(2)
    flakes = 0.3 + 0.3 * numbers.normal(1, 24, 24).double().numpy()
    cut, top = 16, 4  # of 24 px by a factor of 1.5
    flakes = ndimage.zoom(flakes[..., top : top + cut, top : top + cut], (1, 1, 1.5, 1.5), order=1)
    flakes = np.where(flakes < 0.6, 0, np.minimum(flakes, 1))
    fallen = blur.along_a_line(torch.from_numpy(flakes), 8, 3, numbers.uniform(-135, -45)).numpy()
    x = images.double().numpy() / 255
    luma = (0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])[:, None]
    expected = 0.8 * x + 0.2 * np.maximum(x, 1.5 * luma + 0.5) + fallen + np.rot90(fallen, 2, axes=(2, 3))
    alike(weather.snow(images, draws(2), 0.3, 0.3, 1.5, 0.6, 8, 3, 0.8), expected, levels=0.05)


def test_plasma_is_the_mean_of_four_neighbours_and_a_number_at_each_of_three_levels() -> None:
    numbers, field, rough = draws(), np.zeros((8, 8)), 1.0
    for step in (8, 4, 2):
        half = step // 2
        around = [(half, half), (half, -half), (-half, half), (-half, -half)]
        beside = [(half, 0), (-half, 0), (0, half), (0, -half)]
        for top, left, neighbours in ((half, half, around), (0, half, beside), (half, 0, beside)):
            for (i, j), number in np.ndenumerate(numbers.uniform(-1, 1, 1, 8 // step, 8 // step)[0, 0]):
                y, x = i * step + top, j * step + left
                mean = np.mean([field[(y + down) % 8, (x + right) % 8] for down, right in neighbours])
                field[y, x] = mean + rough * number
        rough /= 1.5**2
    expected = (field - field.min()) / (field.max() - field.min())
    np.testing.assert_allclose(weather.plasma(draws(), 7, 1.5)[0, 0], expected, atol=1e-5)


def test_plasma_is_rough_at_all_scales_but_less_so_at_small_ones() -> None:
    field = weather.plasma(draws(8), 50, 2.0)
    assert field.shape == (8, 1, 64, 64)
    assert (field.amin((1, 2, 3)) == 0).all()
    assert (field.amax((1, 2, 3)) == 1).all()
    steps = [(field - field.roll(n, -1)).abs().mean().item() for n in (1, 4, 16)]
    assert 0 < steps[0] < steps[1] < steps[2]


def test_fog_keeps_the_brightest_level_and_lifts_the_others_towards_it() -> None:
    white = corrupt(torch.full((4, 3, 32, 32), 255, dtype=torch.uint8), "fog", 4, torch.arange(4))
    assert (white.amax((1, 2, 3)) == 255).all()
    assert (white.amin((1, 2, 3)) == 127).all()  # (1 + 0) / (1 + strength), strength 1
    black = corrupt(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), "fog", 4, torch.arange(4))
    assert not black.any()  # as in the authors' script


def of_each_pixel(images: Tensor, change) -> np.ndarray:
    """What `change` makes of hue, saturation and value, pixel by pixel by Python's own formulas."""
    pixels = images.permute(0, 2, 3, 1).reshape(-1, 3).numpy() / 255
    changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in pixels]
    return np.array(changed).reshape(*images.permute(0, 2, 3, 1).shape).transpose(0, 3, 1, 2)


@pytest.fixture(scope="module")
def coloured() -> Tensor:
    images = noise_images(2, 10, 10)
    images[0, :, 0] = images[0, :1, 0]  # a row of greys
    images[0, :, 1] = 0
    return images


def test_brightness_adds_to_the_value(coloured: Tensor) -> None:
    alike(weather.brightness(coloured, draws(), 0.3), of_each_pixel(coloured, lambda h, s, v: (h, s, min(v + 0.3, 1))))


@pytest.mark.parametrize(("factor", "more"), [(0.3, 0), (2, 0.1)])
def test_saturate_multiplies_and_raises_the_saturation(coloured: Tensor, factor: float, more: float) -> None:
    expected = of_each_pixel(coloured, lambda h, s, v: (h, min(s * factor + more, 1), v))
    alike(digital.saturate(coloured, draws(), factor, more), expected)


def test_mud_covers_an_image_with_brown_and_water_adds_turquoise() -> None:
    black = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    mud, water = (corrupt(black, "spatter", severity, torch.arange(8)).double() for severity in (5, 3))
    for drops, colour in ((mud, (63, 42, 20)), (water, (175, 238, 238))):
        wet = drops.amax(1) > 0
        assert 0.001 < wet.double().mean() < 0.5
        share = drops / torch.tensor(colour).view(3, 1, 1)
        assert (share.amax(1) - share.amin(1)).max() < 0.06  # the same share of each channel, but for decimals
    assert mud.max() in (62, 63)
    assert (water.amax((1, 2, 3)) == 119).all()  # 0.5 of 238, where the drops are brightest


# Digital


def test_contrast_goes_towards_the_mean_of_each_channel() -> None:
    images = torch.tensor([[[[0, 100], [200, 100]]]], dtype=torch.uint8)
    assert corrupt(images, "contrast", 2, torch.arange(1)).flatten().tolist() == [50, 100, 150, 100]  # half


def test_elastic_moves_three_points_and_then_every_pixel() -> None:
    images, numbers = noise_images(2, 30, 30), draws(2)
    corners = np.array([[25, 25], [25, 5], [5, 5]], float)  # (x, y): 15 and a third of the side around it
    moves, expected = numbers.uniform(-3, 3, 3, 2).double().numpy(), []
    fields = numbers.uniform(-1, 1, 2, 30, 30).double().numpy()
    y, x = np.mgrid[:30, :30].astype(float)
    for image, move, field in zip(images.double().numpy() / 255, moves, fields, strict=True):
        matrix = np.linalg.solve(np.c_[corners + move, np.ones(3)], corners).T  # from the result to the image
        from_x, from_y = (a * x + b * y + c for a, b, c in matrix)
        by_x, by_y = (ndimage.gaussian_filter(part, 1.5, mode="reflect", truncate=3) * 6 for part in field)
        for channel in image:
            warped = ndimage.map_coordinates(channel, [from_y, from_x], order=1, mode="mirror")
            expected.append(ndimage.map_coordinates(warped, [y + by_y, x + by_x], order=1, mode="reflect"))
    out = digital.elastic(images, draws(2), 6 / 30, 1.5 / 30, 3 / 30)
    alike(out, np.reshape(expected, images.shape), levels=0.2)


@pytest.mark.parametrize("side", [32, 80])
def test_pixelate_is_what_pillow_s_box_filter_does(side: int) -> None:
    images, share = noise_images(2, side, side), {32: 0.85, 80: 0.4}[side]
    out = corrupt(images, "pixelate", 3, torch.arange(2))
    for image, made in zip(images, out, strict=True):
        small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((int(side * share),) * 2, Image.Resampling.BOX)
        expected = np.asarray(small.resize((side, side), Image.Resampling.BOX)).astype(int)
        assert abs(made.permute(1, 2, 0).numpy() - expected).max() <= 1  # Pillow rounds between the two axes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("side", "quality"), [(32, 40), (77, 7)])
def test_jpeg_is_pillow_s_but_for_coefficients_halfway_between_two_steps(
    channels: int, side: int, quality: int
) -> None:
    images, off = photographs(side, 8)[:, :channels], []
    for image, made in zip(images, corrupt(images, "jpeg_compression", 5, torch.arange(8)), strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(file, "JPEG", quality=quality)
        off.append(abs(made.permute(1, 2, 0).squeeze(2).numpy() - np.asarray(Image.open(file)).astype(int)))

    assert np.mean(np.array(off) <= 1) > 0.9
    assert np.mean(off) < 0.5  # of a level; the distance from the clean image is about 10


# All of them

# Of whose published constants one falls, or stays, as another rises: their distance need not grow.
FALL = {
    "small": {"glass_blur", "elastic_transform", "spatter", "saturate"},
    "large": {"glass_blur", "snow", "fog", "elastic_transform", "saturate"},
}


@pytest.mark.parametrize(
    ("size", "side", "channels"),
    [("small", 32, 3), ("small", 32, 1), pytest.param("large", 112, 3, marks=pytest.mark.slow)],
)
def test_the_distance_from_the_clean_image_grows_with_severity(size: str, side: int, channels: int) -> None:
    images = photographs(side, 24 if size == "large" else 64)[:, :channels]
    for name in CORRUPTIONS:
        distances = []
        for severity in range(1, 6):
            out = corrupt(images, name, severity, torch.arange(len(images)))
            assert (out.shape, out.dtype) == (images.shape, torch.uint8)
            distances.append((out.float() - images.float()).square().mean().item())
        if name == "saturate" and channels == 1:
            assert not any(distances)  # a grey image has no saturation
        elif name not in FALL[size]:
            assert distances[0] > 0, name
            assert distances == sorted(distances), (name, distances)


def test_words_mean_groups_or_single_corruptions_and_frost_is_left_out_by_name() -> None:
    assert chosen("noise, fog") == {"noise": GROUPS["noise"], "fog": ["fog"]}
    assert chosen(["all"]) == {"all": ALL}
    assert (len(ALL), len(CORRUPTIONS)) == (14, 18)
    with pytest.raises(ValueError, match="frost is left out: it lays photographs"):
        chosen("blur,frost")
    with pytest.raises(ValueError, match=r"corruptions=blurs is unknown; choose of all, noise, blur.*saturate"):
        chosen(["blurs"])


# A run under them


def test_a_run_s_accuracies_are_those_of_a_plain_loop_over_corrupted_images(run: Path, capsys, caplog) -> None:
    caplog.set_level("INFO")
    metrics, objects = evaluated(f"run={run}", "corruptions=[fog,weather]", "seed=3")
    opened = open_run(run)
    opened.datamodule.setup("test")
    images, labels = opened.datamodule.examples("test", 360)

    def accuracy(pixels: Tensor) -> float:
        with torch.no_grad():
            guess = opened.network(opened.datamodule.preprocess(pixels)).argmax(1)
        return float((guess == labels).float().mean())

    frame = pd.read_csv(run / "corruptions.csv", index_col="corruption")
    assert frame.index.tolist() == ["fog", "snow", "brightness"]
    for name in frame.index:
        expected = [accuracy(corrupt(images, name, s, torch.arange(360), seed=3)) for s in range(1, 6)]
        np.testing.assert_allclose(frame.loc[name, list("12345")], expected, atol=1e-5)
        assert frame.loc[name, "mean"] == pytest.approx(np.mean(expected), abs=1e-5)
    assert metrics["test/fog_acc"] == pytest.approx(frame.loc["fog", "mean"], abs=1e-5)
    assert metrics["test/weather_acc"] == pytest.approx(frame["mean"].mean(), abs=1e-5)
    assert "test/corruption_acc" not in metrics  # which is the mean over all
    assert metrics["test/acc"] == pytest.approx(accuracy(images), abs=1e-6)
    assert objects["datamodule"].corrupts is None
    assert (run / "figures/corruptions.png").is_file()
    assert "brightness" in capsys.readouterr().out
    assert f"snow: {100 * frame.loc['snow', 'mean']:.2f} %" in caplog.text


def test_what_cannot_be_corrupted_is_refused_before_the_test(trained_run: Path) -> None:
    with pytest.raises(ValueError, match="frost is left out"):
        evaluated(f"run={trained_run}", "corruptions=frost")


def test_commas_of_the_option_make_no_sweep() -> None:
    assert cli.switched_off("corruptions=noise,blur") == "corruptions=[noise,blur]"
    for word in ("corruptions=all", "corruptions=[noise,blur]", "corruptions='noise,blur'", "corruptions=null"):
        assert cli.switched_off(word) == word


def test_larger_images_are_corrupted_at_the_network_s_size_and_smaller_ones_at_their_own() -> None:
    data, given = ImageDataModule(num_classes=2, image_size=16, resize=20), []
    data.normalise_by([0.5] * 3, [0.5] * 3)

    def darken(images: Tensor) -> Tensor:
        given.append(images)
        return images // 2

    for side in (12, 16, 40):
        images = noise_images(2, side, side)
        data.corrupts = None
        plain = data.see(images)
        data.corrupts = darken
        dark = data.see(images)
        assert (given[-1].shape[-1], given[-1].dtype) == (min(side, 16), torch.uint8)
        assert dark.shape == plain.shape == (2, 3, 16, 16)
        torch.testing.assert_close((dark + 1) * 2, plain + 1, atol=0.03, rtol=0)  # levels are cut off, 1/255 of 2
        if side == 40:
            torch.testing.assert_close(data.preprocess.normalise(given[-1]), plain)


@pytest.mark.slow
def test_two_processes_corrupt_the_images_that_one_does(run: Path) -> None:
    written = []
    for more in (["data.batch_size=50"], ["trainer=ddp_cpu"]):
        options = ["corruptions=shot_noise,elastic_transform", "data.limit=333", *more]
        run_well("-m", "src.eval", f"run={run}", *options)
        written.append((run / "corruptions_limit333.csv").read_bytes())
    assert written[0] == written[1]
