"""Blurs. Where a constant is a length, it is in pixels."""

import math
from collections import Counter
from functools import cache

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from src.evaluation.corruptions.draws import Draws

NOTHING = 1e-3  # a weight of a motion that is left out


def gaussian(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    return smooth(images / 255, sigma)


def smooth(x: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4) -> Tensor:
    """SciPy's `gaussian_filter` of the rows and columns of x (..., H, W)."""
    return along_axes(x, *(_smoothing(side, sigma, mode, truncate, x.device) for side in x.shape[-2:]))


def along_axes(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows (H, H) @ x (..., H, W) @ columns (W, W) transposed."""
    return ((x @ columns.T).mT @ rows.T).mT


@cache
def _smoothing(side: int, sigma: float, mode: str, truncate: float, device: torch.device) -> Tensor:
    of_each = ndimage.gaussian_filter1d(np.eye(side, dtype=np.float32), sigma, axis=0, mode=mode, truncate=truncate)
    return torch.from_numpy(of_each).to(device)


def glass(images: Tensor, draws: Draws, sigma: float, reach: int, times: int) -> Tensor:
    """Smooths, lets each pixel take the place of one nearby, smooths again.

    The authors' script goes from the last pixel to the first. It means to swap two pixels, but NumPy's views make it a
    copy: (h, w) gets what (h + dy, w + dx) has by then, dy and dx from -reach to reach - 1; the border keeps its own.
    """
    height, width = images.shape[-2:]
    x = (smooth(images / 255, sigma) * 255 + 1e-3).floor()
    place = torch.arange(height * width, device=x.device).view(height, width)
    inner = torch.zeros_like(place, dtype=torch.bool)
    inner[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    comes_from = place.flatten().expand(len(x), -1)  # (B, H W)
    for _ in range(times):
        dy, dx = (draws.integers(2 * reach, 2, height, width) - reach).long().unbind(1)
        source = torch.where(inner, place + dy * width + dx, place).flatten(1)
        # What comes later in the image was there before and has what it took: follow it, twice as far each time.
        taken = inner.flatten()[source] & (source > place.flatten())
        while taken.any():
            source, taken = torch.where(taken, source.gather(1, source), source), taken & taken.gather(1, source)
        comes_from = comes_from.gather(1, source)
    x = x.flatten(2).gather(2, comes_from.unsqueeze(1).expand(-1, x.shape[1], -1)).view_as(x)
    return smooth(x / 255, sigma)


def defocus(images: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
    """Convolves with a disk, smoothed a little at its edge."""
    kernel = _disk(radius, sigma, images.device)
    reach = len(kernel) // 2
    x = F.pad(images / 255, (reach,) * 4, mode="reflect")
    return F.conv2d(x.flatten(0, 1).unsqueeze(1), kernel[None, None]).view(images.shape)


@cache
def _disk(radius: float, sigma: float, device: torch.device) -> Tensor:
    """The disk within a radius of the middle, (2 R + 1, 2 R + 1), its sum 1."""
    reach = max(8, math.ceil(radius))
    square = np.arange(-reach, reach + 1) ** 2
    disk = (square[:, None] + square <= radius**2).astype(float)
    disk = ndimage.gaussian_filter(disk / disk.sum(), sigma, mode="mirror", radius=1 if radius <= 8 else 2)
    used = int(np.abs(np.argwhere(disk > 1e-6) - reach).max())
    middle = slice(reach - used, reach + used + 1)
    return torch.from_numpy(disk[middle, middle]).float().to(device)


def motion(images: Tensor, draws: Draws, radius: int, sigma: float) -> Tensor:
    """Blurs along a line, by at most 45 degrees from the horizontal."""
    return along_a_line(images / 255, radius, sigma, draws.uniform(-45, 45))


def along_a_line(x: Tensor, radius: int, sigma: float, angle: Tensor) -> Tensor:
    """Means over pixels that lie ahead of each on a line, as ImageMagick's motion blur takes them.

    Args:
        x: (B, C, H, W)
        angle: of each image's line, in degrees, clockwise from the right (B,).
    """
    tap = torch.arange(2 * radius + 1, device=x.device)
    weights = torch.exp(-0.5 * (tap / sigma).square())
    weights = weights[weights > NOTHING * weights.sum()]
    tap, weights = tap[: len(weights)], weights / weights.sum()
    ahead = [
        (tap * way[:, None] - 0.5).ceil().long() for way in (angle.deg2rad().sin(), angle.deg2rad().cos())
    ]  # (B, taps)
    height, width = x.shape[-2:]
    reach = int(tap[-1])
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    pitch = padded.shape[-1]
    first = (
        (torch.arange(height, device=x.device)[:, None] + reach) * pitch + torch.arange(width, device=x.device) + reach
    )
    offset = ahead[0] * pitch + ahead[1]
    out, flat = torch.zeros_like(x).flatten(2), padded.flatten(2)
    for i, weight in enumerate(weights.tolist()):
        index = (first.flatten() + offset[:, i, None]).unsqueeze(1).expand(-1, x.shape[1], -1)  # (B, C, H W)
        out += flat.gather(2, index).mul_(weight)
    return out.view_as(x)


def zoom(images: Tensor, draws: Draws, stop: float, step: float) -> Tensor:
    """The mean of the image and of its enlargements by 1, 1 + step, ... below `stop`."""
    x = images / 255
    factors = np.arange(1, stop, step).tolist()
    out = x.clone()
    for sizes, count in Counter(_sizes(x, factor) for factor in factors).items():
        out += count * _resized(x, sizes)
    return out / (len(factors) + 1)


def enlarge(x: Tensor, factor: float) -> Tensor:
    """The middle of x (B, C, H, W), enlarged to its size by a factor from 1 on."""
    return _resized(x, _sizes(x, factor))


def _sizes(x: Tensor, factor: float) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of the middle to cut out, and of what it is enlarged to."""
    height, width = (math.ceil(side / factor) for side in x.shape[-2:])
    return (height, width), (round(height * factor), round(width * factor))


def _resized(x: Tensor, sizes: tuple[tuple[int, int], tuple[int, int]]) -> Tensor:
    cut, size = sizes
    out = F.interpolate(_middle(x, *cut), size, mode="bilinear", align_corners=True)  # as SciPy's zoom does
    return _middle(out, *x.shape[-2:])


def _middle(x: Tensor, height: int, width: int) -> Tensor:
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]
