"""Convolutions of small maps as matrix products, against torch's in float32."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from src.networks import parts


@pytest.fixture(autouse=True)
def _amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "has_amx", lambda: True)


def gradients(convolution: nn.Module, images: Tensor, weights: Tensor) -> list[Tensor]:
    """The output, and the gradients of the images, the filters and the biases."""
    images = images.clone().requires_grad_()
    output = convolution(images)
    return [output, *torch.autograd.grad((output.float() * weights).sum(), [images, *convolution.parameters()])]


@pytest.mark.parametrize(("kernel", "size"), [(3, (4, 4)), (3, (1, 2)), ((1, 3), (2, 2)), (5, (3, 5)), (1, (4, 4))])
def test_products_are_convolutions(monkeypatch: pytest.MonkeyPatch, kernel: Any, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(parts, "WEIGHTS_A_PLACE", 0)
    convolution = parts.Conv2d(64, 24, kernel, padding="same").to(memory_format=torch.channels_last)
    images, weights = torch.randn(6, 64, *size), torch.randn(6, 24, *size)
    exact = gradients(convolution, images, weights)
    monkeypatch.delattr(nn.Conv2d, "_conv_forward")  # torch's
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(convolution, images, weights)
    for value, expected in zip(found, exact, strict=True):
        assert (value.float() - expected).norm() < 5e-3 * expected.norm()  # bfloat16 keeps 8 bits


def test_frozen_filters_let_the_gradient_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "WEIGHTS_A_PLACE", 0)
    convolution = parts.Conv2d(64, 64, 3, padding=1, bias=False).bfloat16().requires_grad_(False)
    images = torch.randn(2, 64, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    convolution(images).sum().backward()
    expected = torch.autograd.grad(nn.functional.conv2d(images, convolution.weight, padding=1).sum(), images)[0]
    torch.testing.assert_close(images.grad, expected, rtol=0.02, atol=0.02)
    assert convolution.weight.grad is None


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 0}, {"padding_mode": "reflect"},
     {"kernel_size": 2}, {"in_channels": 256}, {"kernel_size": 1, "padding": 0}, {"side": 5}, {"dtype": torch.float32}],
)  # fmt: skip
def test_other_convolutions_stay_torchs(options: dict[str, Any]) -> None:
    given = {"in_channels": 512, "kernel_size": 3, "padding": 1, "side": 4, "dtype": torch.bfloat16, **options}
    side, dtype = given.pop("side"), given.pop("dtype")
    convolution = parts.Conv2d(out_channels=256, **given)
    maps = torch.zeros(1, convolution.in_channels, side, side, dtype=dtype)
    assert convolution._is_quicker_as_product(maps) == (not options)
