"""Corruptions of test images, regenerated after Hendrycks and Dietterich (2019, arXiv 1903.12261), batched.

Images are uint8 (B, C, H, W), of three channels or one, on any device. Where no side has more than `SMALL` pixels they
get the severities of the authors' script for CIFAR-10, larger ones those of their script for ImageNet, whose lengths
in pixels are meant for sides of 224. The images are not the authors' own: other numbers were drawn, what lies in
between stays float where theirs is rounded to 8 bits, and none is stored as a JPEG file before it is shown.

Frost, one of the fifteen, needs photographs and is left out.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from src.evaluation.corruptions import blur, digital, noise, weather
from src.evaluation.corruptions.draws import Draws

SMALL = 64  # pixels
GROUPS = {
    "noise": ["gaussian_noise", "shot_noise", "impulse_noise"],
    "blur": ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur"],
    "weather": ["snow", "fog", "brightness"],
    "digital": ["contrast", "elastic_transform", "pixelate", "jpeg_compression"],
    "extra": ["speckle_noise", "gaussian_blur", "spatter", "saturate"],
}
ALL = [name for group, names in GROUPS.items() if group != "extra" for name in names]

# The corruption, its constants at the five severities for small images, and those for others.
CORRUPTIONS: dict[str, tuple[Callable[..., Tensor], Sequence[Any], Sequence[Any]]] = {
    "gaussian_noise": (noise.gaussian, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (noise.shot, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": (noise.impulse, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle_noise": (noise.speckle, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),
    "defocus_blur": (
        blur.defocus,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": (
        blur.glass,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": (
        blur.motion,
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": (
        blur.zoom,
        ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "gaussian_blur": (blur.gaussian, (0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
    "snow": (
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "fog": (
        weather.fog,
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": (weather.brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "spatter": (
        weather.spatter,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        (
            (0.65, 0.3, 4, 0.69, 0.6, False),
            (0.65, 0.3, 3, 0.68, 0.6, False),
            (0.65, 0.3, 2, 0.68, 0.5, False),
            (0.65, 0.3, 1, 0.65, 1.5, True),
            (0.67, 0.4, 1, 0.65, 1.5, True),
        ),
    ),
    "contrast": (digital.contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "elastic_transform": (
        digital.elastic,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        # shares of 244 px, the script's side for images of 224
        [
            tuple(share * 244 / 224 for share in shares)
            for shares in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ],
    ),
    "pixelate": (digital.pixelate, (0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (digital.jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    "saturate": (
        digital.saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    ),
}


def chosen(words: str | Sequence[str]) -> dict[str, list[str]]:
    """The corruptions that each word means: a group of them, "all" (fourteen: the fifteen but frost), or one by name.

    Args:
        words: a list, or text with commas between them.

    Raises:
        ValueError: a word means none.
    """
    known = {"all": ALL, **GROUPS, **{name: [name] for name in CORRUPTIONS}}
    words = [word.strip() for word in (words.split(",") if isinstance(words, str) else words)]
    if "frost" in words:
        raise ValueError("corruptions=frost is left out: it lays photographs over the images, and none is downloaded.")
    if unknown := [word for word in words if word not in known]:
        raise ValueError(f"corruptions={unknown[0]} is unknown; choose of {', '.join(known)}.")
    return {word: known[word] for word in words}


def corrupt(images: Tensor, name: str, severity: int, positions: Tensor, seed: int = 0) -> Tensor:
    """The images, uint8 (B, C, H, W), corrupted.

    What is drawn for an image depends on its position, the corruption, the severity and the seed alone.

    Args:
        severity: 1 to 5.
        positions: of the images in their split, int64 (B,).
    """
    function, small, others = CORRUPTIONS[name]
    constants = (small if max(images.shape[-2:]) <= SMALL else others)[severity - 1]
    draws = Draws(positions.to(images.device), seed, severity, *name.encode())
    out = function(images, draws, *(constants if isinstance(constants, tuple) else (constants,)))
    # The authors' scripts cut off decimals too; a thousandth makes up for what float32 loses of a whole number.
    return out if out.dtype == torch.uint8 else (out.clamp(0, 1) * 255 + 1e-3).to(torch.uint8)


class Corruption:
    """Corrupts a split batch after batch; a process gets every `world`-th image of it, from `rank` on."""

    def __init__(self, name: str, severity: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        self.how, self.seed, self.next, self.step = (name, severity), seed, rank, world

    def __call__(self, images: Tensor) -> Tensor:
        positions = torch.arange(len(images)) * self.step + self.next
        self.next += len(images) * self.step
        return corrupt(images, *self.how, positions, self.seed)
