"""VGG: Simonyan and Zisserman 2015, "Very deep convolutional networks for large-scale image recognition"."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from src.networks.parts import convolution, kaiming_, require_image_size

# Table 1 of the paper, columns A, B, D and E. A number is a 3x3 convolution's width, "M" a 2x2 max pool.
STAGES: dict[str, list[int | str]] = {
    "vgg11": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg13": [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    "vgg16": [64, 64, "M", 128, 128, "M", *[256] * 3, "M", *[512] * 3, "M", *[512] * 3, "M"],
    "vgg19": [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4, "M"],
}


class VGG(nn.Module):
    """3x3 convolutions in stages, a 2x2 max pool after each, a fully connected head on the last map as it is.

    images (B, channels, S, S) -> logits (B, num_classes). The last map is 7x7 at 224 px (then this is torchvision's
    network), 3x3 at 96 and 1x1 at 32.

    `stages` is a name of `STAGES` or a list of widths and "M". `batch_norm` follows every convolution with one.
    `factorized` splits every 3x3 into 1x3 and 3x1, each with its own ReLU (Szegedy et al. 2016, "Rethinking the
    Inception architecture", section 3.2). `hidden` holds the widths of the head's hidden layers; `dropout` acts
    on each of them.

    Initialisation: Kaiming normal (He et al. 2015, section 2.2), fan out for the convolutions, fan in for the
    linear layers. torchvision draws those from N(0, 0.01), from which VGG-19 without batch norm hardly starts.

    Raises ValueError for an unknown name, a stage that is neither a width nor "M", and too small an image.
    """

    def __init__(
        self,
        stages: str | Sequence[int | str] = "vgg16",
        num_classes: int = 1000,
        image_size: int = 224,
        batch_norm: bool = False,
        factorized: bool = False,
        hidden: Sequence[int] = (4096, 4096),
        dropout: float = 0.5,
        channels: int = 3,
    ) -> None:
        super().__init__()
        layout = _read_stages(stages)
        reduction = 2 ** layout.count("M")
        name = stages if isinstance(stages, str) else None
        require_image_size(name or "this VGG", image_size, minimum=reduction)
        self.features, width = _features(layout, channels, batch_norm, factorized)
        side = image_size // reduction
        widths = [width * side**2, *hidden]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers += [nn.Linear(narrow, wide), nn.ReLU(inplace=True), nn.Dropout(dropout)]
        self.classifier = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))
        # The first linear layer follows the image size; published weights have it for a 7x7 map.
        self.head = (f"classifier.{len(layers)}",) if side == 7 else ("classifier.0", f"classifier.{len(layers)}")
        self.torchvision_name = f"{name}{'_bn' if batch_norm else ''}" if name and not factorized else None
        kaiming_(self, linear=True)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)  # (B, C, S/32, S/32)
        return self.classifier(torch.flatten(maps, 1))


def _read_stages(stages: str | Sequence[int | str]) -> list[int | str]:
    if isinstance(stages, str):
        if stages not in STAGES:
            raise ValueError(f"Unknown VGG stages '{stages}': give one of {', '.join(STAGES)} or a list.")
        return STAGES[stages]
    layout = list(stages)
    if not layout or layout[0] == "M":
        raise ValueError(f"VGG stages begin with a convolution's width, not {layout}.")
    return layout


def _features(layout: list[int | str], channels: int, batch_norm: bool, factorized: bool) -> tuple[nn.Sequential, int]:
    """The convolutions and pools, and the width of the last map."""
    layers: list[nn.Module] = []
    kernels = [(1, 3), (3, 1)] if factorized else [(3, 3)]
    for stage in layout:
        if stage == "M":
            layers.insert(len(layers) - 1, nn.MaxPool2d(2))  # before the ReLU
        elif isinstance(stage, int) and stage > 0:
            for kernel in kernels:
                layers += convolution(channels, stage, kernel, norm=batch_norm)
                channels = stage
        else:
            raise ValueError(f"A VGG stage is a positive width or 'M' (max pool), not {stage!r} in {layout}.")
    return nn.Sequential(*layers), channels
