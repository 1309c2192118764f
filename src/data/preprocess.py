"""From uint8 images to what the network sees."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

STATISTICS: dict[str, dict[str, tuple[float, ...]]] = {  # of images in 0..1, per channel or of all
    "imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "half": {"mean": (0.5,), "std": (0.5,)},
}


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
        return self.normalise(self.cut(images))

    def after_augmentation(self, images: Tensor) -> Tensor:
        """As `forward`, but a crop of the size `image_size` stays as it was cut: `resize` would enlarge it."""
        return self.normalise(images if images.shape[-2:] == (self.size, self.size) else self.cut(images))

    def cut(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) -> uint8 (B, C, image_size, image_size)"""
        images = TF.resize(images, [self.shorter], antialias=True)  # as it is where it has that size
        return TF.center_crop(images, [self.size, self.size])

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, C, image_size, image_size) -> float32"""
        return (images * self.scale).add_(self.shift)


def statistic(
    name: str, given: str | Sequence[float] | None, own: Sequence[float] | None, channels: int
) -> list[float]:
    """The mean or the deviation of each channel, as `given` says: numbers, a name, or None for the data set's `own`.

    Raises:
        ValueError: there is none by that name, or it is not what a mean or a deviation must be.
    """
    values = STATISTICS.get(given, {}).get(name) if isinstance(given, str) else own if given is None else given
    if values is None or len(values) not in (1, channels) or (name == "std" and min(values) <= 0):
        numbers = ("three numbers" if channels == 3 else "one number") + " above 0" * (name == "std")
        raise ValueError(f"data.{name}={given!r}: choose {numbers}, {', '.join(STATISTICS)}, or null (its own).")
    return [float(x) for x in values] * (channels // len(values))


def measure_statistics(data: Any, channels: int = 3, most: int = 10_000) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel of images in 0..1, from at most `most` evenly spaced images of a data set."""
    counts = torch.zeros(channels, 256, dtype=torch.float64)
    for chosen in torch.arange(0, len(data), math.ceil(len(data) / most)).split(256):
        images, labels, *_ = data.__getitems__(chosen.tolist())
        readable = labels.view(len(labels), -1)[:, 0] >= 0  # the others are black
        for channel, values in enumerate(images[readable].cpu().transpose(0, 1)):
            counts[channel] += torch.bincount(values.flatten(), minlength=256)
    level, share = torch.arange(256) / 255.0, counts / counts.sum(1, keepdim=True)
    mean = share @ level.double()
    variance = share @ level.double().square() - mean.square()
    return mean.tolist(), variance.clamp(min=1 / 255**2).sqrt().tolist()  # a channel may never vary
