"""Noise of each pixel by itself: a table has what becomes of each level at `QUANTILES` equally likely quantiles."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from src.evaluation.corruptions.draws import LEVELS, Draws, chosen

QUANTILES = 2**12  # as many as the processor's cache holds for 256 levels


def gaussian(images: Tensor, draws: Draws, deviation: float) -> Tensor:
    """Adds noise of one deviation, in shares of the full range."""
    return _with_noise(images, draws, _gaussian, deviation)


def speckle(images: Tensor, draws: Draws, deviation: float) -> Tensor:
    """Adds noise whose deviation is this times the pixel."""
    return _with_noise(images, draws, _speckle, deviation)


def shot(images: Tensor, draws: Draws, photons: float) -> Tensor:
    """Counts photons, of which a white pixel gets so many in the mean."""
    return _with_noise(images, draws, _shot, photons)


def impulse(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Makes a share of all values black or white, both as often."""
    bits, half = draws.bits(*images.shape[1:]), share / 2 * LEVELS
    return images.masked_fill(bits < half, 0).masked_fill_(bits >= LEVELS - half, 255)


# What becomes of a pixel x (256, 1) at a quantile q (Q,) of the noise: (256, Q).


def _gaussian(x: Tensor, q: Tensor, deviation: float) -> Tensor:
    return x + deviation * torch.special.ndtri(q)


def _speckle(x: Tensor, q: Tensor, deviation: float) -> Tensor:
    return x + x * deviation * torch.special.ndtri(q)


def _shot(x: Tensor, q: Tensor, photons: float) -> Tensor:
    counts = torch.arange(photons + 1, dtype=x.dtype)  # more than these are cut off as white
    at_most = torch.special.gammaincc(counts + 1, x * photons)  # chance of at most so many (256, counts)
    return torch.searchsorted(at_most, q.expand(len(x), -1).contiguous()) / photons


def _with_noise(images: Tensor, draws: Draws, noise: Callable[..., Tensor], amount: float) -> Tensor:
    which = images.int() * QUANTILES + draws.integers(QUANTILES, *images.shape[1:])
    return chosen(_table(noise, amount, images.device), which)


@cache
def _table(noise: Callable[..., Tensor], amount: float, device: torch.device) -> Tensor:
    """What becomes of each level at each quantile, uint8 (256 * QUANTILES,)."""
    levels = torch.arange(256, dtype=torch.float64)[:, None] / 255
    quantiles = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    return (noise(levels, quantiles, amount).clamp(0, 1) * 255 + 1e-6).to(torch.uint8).flatten().to(device)
