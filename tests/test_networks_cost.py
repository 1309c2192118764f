"""The costs of networks, against their papers and a count by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from src.networks.alexnet import AlexNet
from src.networks.cost import describe
from src.networks.googlenet import GoogLeNet
from src.networks.nin import NIN
from src.networks.resnet import CifarResNet, ResNet
from src.networks.tinyvgg import TinyVGG
from src.networks.vgg import VGG


@pytest.mark.parametrize(
    ("build", "image_size", "million_parameters", "billion_multiply_adds", "depth"),
    [
        (lambda: VGG("vgg16"), 224, 138, 15.5, 16),  # table 2; 15.5: He et al. 2016, section 3.3 (VGG-19: 19.6)
        (lambda: VGG("vgg19"), 224, 144, 19.6, 19),
        (GoogLeNet, 224, 7, 1.5, 22),  # table 1 (its sum is 6.8 million), section 5
        (AlexNet, 224, 61, 0.7, 8),  # Krizhevsky 2012: 60 million, eight layers
        (lambda: ResNet(18), 224, 12, 1.8, 18),  # table 1: 1.8 x 10^9
        (lambda: ResNet(34), 224, 22, 3.7, 34),  # table 1: 3.6 x 10^9, with option A shortcuts
        (lambda: ResNet(50), 224, 26, 4.1, 50),  # table 1: 3.8 x 10^9, with the stride on the 1x1
        (lambda: ResNet(101), 224, 45, 7.8, 101),  # table 1: 7.6 x 10^9
        (lambda: CifarResNet(20, num_classes=10), 32, 0.27, 0.041, 20),  # table 6
        (lambda: CifarResNet(56, num_classes=10), 32, 0.85, 0.13, 56),
        (lambda: NIN(num_classes=10), 32, 0.97, 0.22, 9),
    ],
)
def test_costs_agree_with_the_papers(
    build: Callable[[], nn.Module], image_size: int, million_parameters: float, billion_multiply_adds: float, depth: int
) -> None:
    with torch.device("meta"):
        cost = describe(build(), image_size)
    assert cost.parameters / 1e6 == pytest.approx(million_parameters, rel=0.06)
    assert cost.multiply_adds / 1e9 == pytest.approx(billion_multiply_adds, rel=0.04)
    assert cost.depth == depth


def test_the_costs_of_tinyvgg_are_those_worked_out_by_hand() -> None:
    network = TinyVGG(10, num_classes=10, image_size=32).train()
    cost = describe(network, 32)
    # Maps of 30x30 and 28x28, pooled to 14x14, 12x12 and 10x10, pooled to 5x5.
    assert cost.multiply_adds == 30 * 30 * 270 + (28 * 28 + 12 * 12 + 10 * 10) * 900 + 250 * 10
    assert cost.parameters == 280 + 3 * 910 + 2510
    assert cost.fully_connected == 2510
    assert cost.depth == 5
    # Kept for the backward pass, in float32: the images, the maps, and the pools' choices as int64.
    floats = 3 * 32 * 32 + 10 * (30 * 30 + 28 * 28 + 14 * 14 + 12 * 12 + 10 * 10 + 5 * 5)
    assert cost.activation_memory == 4 * floats + 8 * 10 * (14 * 14 + 5 * 5)
    assert network.training
    assert next(network.parameters()).device.type == "cpu"


def test_neither_auxiliary_heads_nor_freezing_change_the_cost() -> None:
    with torch.device("meta"):
        cost = describe(GoogLeNet(num_classes=10), 96)
        assert describe(GoogLeNet(num_classes=10, aux_heads=False).requires_grad_(False), 96) == cost
