"""What images look like against scipy, and the slices in which a planted weakness is found."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from src.evaluation.intervals import wilson
from src.evaluation.slices import appearance, slices


@pytest.mark.parametrize("channels", [1, 3])
def test_brightness_and_sharpness_are_those_of_the_image_before_it_was_normalised(channels: int) -> None:
    images = torch.rand(4, channels, 9, 9, generator=torch.Generator().manual_seed(0))
    mean, std = [0.4, 0.5, 0.6][:channels], [0.2, 0.3, 0.1][:channels]
    normalised = (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(-1, 1, 1) if channels == 3 else 1
    luma = (images * weights).sum(1).double().numpy()
    expected = [(each.mean(), ndimage.laplace(each, mode="nearest").var()) for each in luma]
    np.testing.assert_allclose(appearance(normalised, mean, std), expected, rtol=1e-4)


def test_a_blurred_image_is_less_sharp_and_an_even_one_is_not_sharp_at_all() -> None:
    images = np.random.default_rng(0).random((5, 1, 32, 32))
    blurred = ndimage.gaussian_filter(images, (0, 0, 1, 1))
    sharp, soft = (appearance(torch.tensor(each), [0.0], [1.0])[:, 1] for each in (images, blurred))
    assert (soft < 0.1 * sharp).all()
    assert appearance(torch.full((1, 1, 1, 1), 0.5), [0.5], [0.5])[0].tolist() == [0.75, 0]


def predicted(count: int, **columns) -> pd.DataFrame:
    values = np.random.default_rng(0).random((3, count))
    frame = pd.DataFrame(values.T, columns=["confidence", "brightness", "sharpness"])
    return frame.assign(label=np.array(["a", "b"])[np.arange(count) % 2], **columns)


def test_the_darkest_images_are_found_to_be_the_worst() -> None:
    frame = predicted(1000)
    wrong = (frame["brightness"] < 0.1) | (np.arange(1000) % 10 == 0)
    found = slices(frame.assign(prediction=frame["label"].where(~wrong, "c")))
    worst = found.iloc[0]
    darkest = f"{frame['brightness'].min():.3g} to "
    assert (worst["by"], worst["images"], worst["slice"][: len(darkest)]) == ("brightness", 100, darkest)
    assert found["high"].is_monotonic_increasing
    for by, number in (("class", 2), ("confidence", 10), ("brightness", 10), ("sharpness", 10)):
        part = found[found["by"] == by].sort_index()
        assert (len(part), part["images"].sum()) == (number, 1000)
        assert (part["accuracy"] * part["images"]).sum() == pytest.approx((~wrong).sum())
    low, high = wilson(round(worst["accuracy"] * 100), 100)
    assert (worst["low"], worst["high"]) == pytest.approx((low, high))


def test_few_images_make_few_slices_and_equal_values_stay_together() -> None:
    number = {size: (slices(predicted(size, prediction="a"))["by"] == "sharpness").sum() for size in (1, 19, 20, 57)}
    assert number == {1: 1, 19: 1, 20: 2, 57: 5}
    sure = np.where(np.arange(1000) < 700, 1.0, np.linspace(0.3, 0.9, 1000))
    found = slices(predicted(1000, prediction="a").assign(confidence=sure))
    assert found[found["by"] == "confidence"].sort_index()["images"].tolist() == [100, 100, 100, 700]
    even = slices(predicted(50, prediction="a").assign(brightness=0.5))
    assert even.loc[even["by"] == "brightness", ["slice", "images"]].values.tolist() == [["0.5 to 0.5", 50]]
