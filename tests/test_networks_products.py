"""Convolutions of small maps as matrix products, against torch's in float32."""

import pytest
import torch
from torch import Tensor, nn

from src.networks import parts


def gradients(convolution: nn.Module, images: Tensor, weights: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """The output, and the gradients of the images, the filters and the biases."""
    images = images.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = convolution(images)
    inputs = [images, *convolution.parameters()]
    return [output, *torch.autograd.grad((output.float() * weights).sum(), inputs)]


@pytest.mark.parametrize(("kernel", "size"), [(3, (4, 4)), (3, (1, 2)), ((1, 3), (2, 2)), (5, (3, 5)), (1, (4, 4))])
def test_products_are_convolutions(monkeypatch, kernel, size):
    monkeypatch.setattr(parts, "has_amx", lambda: True)
    torch.manual_seed(0)
    convolution = parts.Conv2d(64, 24, kernel, padding="same").to(memory_format=torch.channels_last)
    images, weights = torch.randn(6, 64, *size), torch.randn(6, 24, *size)
    assert convolution._is_quicker_as_product(images.bfloat16())
    exact = gradients(convolution, images, weights, torch.float32)
    for found, value in zip(gradients(convolution, images, weights, torch.bfloat16), exact, strict=True):
        assert (found.float() - value).norm() < 5e-3 * value.norm()  # bfloat16 keeps 8 bits


@pytest.mark.parametrize("options", [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 0}])
def test_other_convolutions_stay_torchs(monkeypatch, options):
    monkeypatch.setattr(parts, "has_amx", lambda: True)
    convolution = parts.Conv2d(64, 64, 3, **{"padding": 1, **options})
    assert not convolution._is_quicker_as_product(torch.zeros(1, 64, 4, 4, dtype=torch.bfloat16))
