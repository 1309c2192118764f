"""From uint8 images to what the network sees."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF


class Preprocess(nn.Module):
    """uint8 (B, C, H, W) of any size -> normalised float32 (B, C, image_size, image_size).

    Resizes the shorter side to `resize` px (bilinear, antialiased) and cuts the centre, then takes
    (x / 255 - mean) / std per channel. What validation, test, prediction and export see.

    Args:
        mean, std: C floats each, of images in 0..1.
        resize: None is `image_size`, which leaves images that are already of that size alone.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, image_size: int, mean: Sequence[float], std: Sequence[float], resize: int | None = None) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {"image_size": image_size, "mean": mean, "std": std, "resize": resize}
        self.size, self.shorter, self.channels = image_size, resize or image_size, len(mean)
        mean_, std_ = (torch.tensor(x, dtype=torch.float64).view(-1, 1, 1) for x in (mean, std))
        self.register_buffer("scale", (1 / (255 * std_)).float(), persistent=False)
        self.register_buffer("shift", (-mean_ / std_).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        images = TF.resize(images, [self.shorter], antialias=True)  # as it is where it has that size
        images = TF.center_crop(images, [self.size, self.size])
        return (images * self.scale).add_(self.shift)
