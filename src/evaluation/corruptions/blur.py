"""Blurs. Where a constant is a length, it is in pixels."""

import math
from functools import cache

import numpy as np
import torch
from scipy import ndimage, sparse
from torch import Tensor
from torch.nn import functional as F

from src.evaluation.corruptions.draws import Draws, chosen

NOTHING = 1e-3  # a weight of a motion that is left out


def gaussian(images: Tensor, draws: Draws, sigma: float) -> Tensor:
    return smooth(images / 255, sigma)


def smooth(x: Tensor, sigma: float, mode: str = "nearest", truncate: float = 4) -> Tensor:
    """SciPy's `gaussian_filter` of the rows and columns of x (..., H, W)."""
    return along_axes(x, *(_smoothing(side, sigma, mode, truncate, x.device) for side in x.shape[-2:]))


def along_axes(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Each row and each column of x (..., H, W) by a matrix (W, W) and (H, H)."""
    return rows @ (x @ columns.T)


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
    place = torch.arange(height * width, dtype=torch.int32, device=x.device).view(height, width)
    inner = torch.zeros_like(place, dtype=torch.bool)
    inner[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    comes_from = place.flatten().long().expand(len(x), -1)  # (B, H W)
    for _ in range(times):
        dy, dx = (draws.integers(2 * reach, 2, height, width) - reach).unbind(1)
        source = torch.where(inner, place + dy * width + dx, place).flatten(1)
        # What comes later in the image was there before and has what it took: follow it, twice as far each time.
        taken = (source > place.flatten()) & chosen(inner.flatten(), source)
        source = source.long()
        while taken.any():
            source, taken = torch.where(taken, source.gather(1, source), source), taken & taken.gather(1, source)
        comes_from = comes_from.gather(1, source)
    x = x.flatten(2).gather(2, comes_from.unsqueeze(1).expand(-1, x.shape[1], -1)).view_as(x)
    return smooth(x / 255, sigma)


def defocus(images: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
    """Convolves with a disk, smoothed a little at its edge."""
    kernel = _disk(radius, sigma, images.device)
    reach = len(kernel) // 2
    planes = F.pad(images / 255, (reach,) * 4, mode="reflect").flatten(0, 1).unsqueeze(0)  # (1, B C, ...)
    count = planes.shape[1]
    return F.conv2d(planes, kernel.expand(count, 1, -1, -1), groups=count).view(images.shape)


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
    (count, channels, height, width), reach = x.shape, int(tap[-1])
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    plane, pitch, _ = padded.stride()[1:]
    rows = padded.flatten()
    rows = rows.as_strided((len(rows) - width + 1, width), (1, 1))  # that begin at any pixel
    planes = torch.arange(count * channels, device=x.device).view(count, channels, 1) * plane
    first = planes + (torch.arange(height, device=x.device) + reach) * pitch + reach  # (B, C, H)
    out = torch.zeros_like(x)
    for way, weight in zip((ahead[0] * pitch + ahead[1]).T, weights.tolist(), strict=True):
        out.add_(rows.index_select(0, (first + way.view(-1, 1, 1)).flatten()).view(x.shape), alpha=weight)
    return out


def zoom(images: Tensor, draws: Draws, stop: float, step: float) -> Tensor:
    """The mean of the image and of its enlargements by 1, 1 + step, ... below `stop`."""
    x = images / 255
    pixels = x.flatten(0, 1).flatten(1).T.contiguous()  # (H W, B C)
    return torch.sparse.mm(_zooming(*x.shape[-2:], stop, step, x.device), pixels).T.view(x.shape)


@cache
def _zooming(height: int, width: int, stop: float, step: float, device: torch.device) -> Tensor:
    """What each pixel becomes of, sparse (H W, H W): a few others, since the enlargements differ by little."""
    factors = np.arange(1, stop, step).tolist()
    total = sparse.identity(height * width, format="csr")
    for factor in factors:
        total = total + sparse.kron(*(_enlarging(side, factor, torch.device("cpu")) for side in (height, width)), "csr")
    entries = (total / (len(factors) + 1)).tocoo()
    return torch.sparse_coo_tensor(
        torch.from_numpy(np.stack(entries.coords)).long(),
        torch.from_numpy(entries.data).float(),
        entries.shape,
        device=device,
        check_invariants=True,
    ).coalesce()


def enlarge(x: Tensor, factor: float) -> Tensor:
    """The middle of x (..., H, W), enlarged to its size by a factor from 1 on, as SciPy's `zoom` does."""
    return along_axes(x, *(_enlarging(side, factor, x.device) for side in x.shape[-2:]))


@cache
def _enlarging(side: int, factor: float, device: torch.device) -> Tensor:
    cut = math.ceil(side / factor)
    middle = torch.eye(side)[(side - cut) // 2 :][:cut]  # (cut, side)
    larger = F.interpolate(middle.T[None], round(cut * factor), mode="linear", align_corners=True)[0].T
    return larger[(len(larger) - side) // 2 :][:side].contiguous().to(device)
