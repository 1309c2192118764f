"""Noise of each pixel by itself: a table has what becomes of each level at `QUANTILES` equally likely quantiles."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from src.evaluation.corruptions.draws import LEVELS, Draws, chosen

QUANTILES = 2**12  # as many as the processor's cache holds for 256 levels


def _of_each_pixel(noise: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Tensor, Draws, float], Tensor]:
    """The corruption by a noise, given as what becomes of pixels x (256, 1), 0 to 1, at quantiles q (Q,): (256, Q)."""

    @cache
    def table(amount: float, device: torch.device) -> Tensor:
        x = torch.arange(256, dtype=torch.float64)[:, None] / 255
        q = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
        return (noise(x, q, amount).clamp(0, 1) * 255 + 1e-6).to(torch.uint8).flatten().to(device)

    def corrupted(images: Tensor, draws: Draws, amount: float) -> Tensor:
        which = images.int() * QUANTILES + draws.integers(QUANTILES, *images.shape[1:])
        return chosen(table(amount, images.device), which)

    return corrupted


@_of_each_pixel
def gaussian(x: Tensor, q: Tensor, deviation: float) -> Tensor:
    """Adds noise of one deviation."""
    return x + deviation * torch.special.ndtri(q)


@_of_each_pixel
def speckle(x: Tensor, q: Tensor, deviation: float) -> Tensor:
    """Adds noise whose deviation is this times the pixel."""
    return x + x * deviation * torch.special.ndtri(q)


@_of_each_pixel
def shot(x: Tensor, q: Tensor, photons: float) -> Tensor:
    """Counts photons, of which a white pixel gets so many in the mean."""
    counts = torch.arange(photons + 1, dtype=x.dtype)  # more than these are cut off as white
    at_most = torch.special.gammaincc(counts + 1, x * photons)  # chance of at most so many (256, counts)
    return torch.searchsorted(at_most, q.expand(len(x), -1).contiguous()) / photons


def impulse(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Makes a share of all values black or white, both as often."""
    bits, half = draws.bits(*images.shape[1:]), share / 2 * LEVELS
    return images.masked_fill(bits < half, 0).masked_fill_(bits >= LEVELS - half, 255)
