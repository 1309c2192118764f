"""Weather: what lies between the camera and the scene, and its light."""

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from src.evaluation.corruptions.blur import along_a_line, enlarge, smooth
from src.evaluation.corruptions.draws import Draws
from src.evaluation.slices import LUMA

WATER, MUD = (175, 238, 238), (63, 42, 20)  # levels of red, green and blue
FURTHEST = 20  # pixels


def snow(images: Tensor, draws: Draws, *constants: Any) -> Tensor:
    """Flakes that fall, and fall once more in the layer turned by half a circle, over an image that grows pale."""
    mean, deviation, size, threshold, radius, sigma, keep = constants
    flakes = enlarge(mean + deviation * draws.normal(1, *images.shape[-2:]), size)
    flakes = torch.where(flakes < threshold, 0, flakes).clamp(max=1)
    flakes = along_a_line(flakes, radius, sigma, draws.uniform(-135, -45))
    x = images / 255
    x = keep * x + (1 - keep) * torch.maximum(x, 1.5 * _luma(x) + 0.5)
    return x + flakes + flakes.flip(-2, -1)


def fog(images: Tensor, draws: Draws, strength: float, decay: float) -> Tensor:
    """Adds a plasma fractal and brings the image back to the brightness of its brightest pixel."""
    x, (height, width) = images / 255, images.shape[-2:]
    top = x.amax((1, 2, 3), keepdim=True)
    return (x + strength * plasma(draws, max(height, width), decay)[..., :height, :width]) * top / (top + strength)


def plasma(draws: Draws, size: int, decay: float) -> Tensor:
    """Height maps from 0 to 1 by the diamond-square algorithm, which wraps round, (B, 1, S, S).

    S is the least power of two from `size` on. Each time the squares are halved, so is a difference by `decay` squared.
    """
    side = step = 2 ** (size - 1).bit_length()
    field = draws.keys.new_zeros((len(draws.keys), 1, side, side), dtype=torch.float32)
    rough = 1.0

    def mean(four: Tensor) -> Tensor:
        return four / 4 + rough * draws.uniform(-1, 1, *four.shape[1:])

    while step > 1:
        half = step // 2
        corners = field[..., ::step, ::step]
        rows = corners + corners.roll(-1, -2)
        centres = mean(rows + rows.roll(-1, -1))
        field[..., half::step, half::step] = centres
        field[..., ::step, half::step] = mean(centres + centres.roll(1, -2) + corners + corners.roll(-1, -1))
        field[..., half::step, ::step] = mean(centres + centres.roll(1, -1) + rows)
        step, rough = half, rough / decay**2
    field -= field.amin((2, 3), keepdim=True)
    return field / field.amax((2, 3), keepdim=True)


def brightness(images: Tensor, draws: Draws, more: float) -> Tensor:
    """Adds to the value of hue, saturation and value."""
    x = images / 255
    value = x.amax(1, keepdim=True)
    brighter = (value + more).clamp(max=1)
    return torch.where(value > 0, x * (brighter / value), brighter)


def spatter(images: Tensor, draws: Draws, *constants: Any) -> Tensor:
    """Drops of water or mud on the lens.

    Drops of water are shaded by the distance to their border; the authors take the edges that Canny's detector finds,
    which are those of the drops.
    """
    mean, deviation, sigma, threshold, amount, mud = constants
    x = images / 255
    liquid = smooth(mean + deviation * draws.normal(1, *images.shape[-2:]), sigma)
    drops = torch.where(liquid < threshold, 0, liquid)
    colour = torch.tensor(MUD if mud else WATER, device=x.device).view(-1, 1, 1) / 255
    colour = colour if x.shape[1] == 3 else _luma(colour[None])[0]
    if mud:
        cover = smooth((drops > threshold).float(), amount)
        cover = torch.where(cover < 0.8, 0, cover)
        return x * (1 - cover) + colour * cover
    cover = drops * _shading(drops > 0)
    return x + colour * cover * (amount / cover.amax((1, 2, 3), keepdim=True).clamp(min=1e-6))


def _shading(drops: Tensor) -> Tensor:
    """Levels (B, 1, H, W): an embossed relief of the distance to the border of the drops, bool (B, 1, H, W)."""
    inside = -F.max_pool2d(-drops.float(), 3, stride=1, padding=1) > 0
    away = (~drops | inside).cpu().numpy()
    distances = np.stack([ndimage.distance_transform_edt(image) for image in away])
    levels = torch.from_numpy(distances).float().clamp(max=FURTHEST).to(drops.device)
    levels = _equalised(_filtered(levels, torch.full((3, 3), 1 / 9)).long())
    levels = _filtered(levels, torch.tensor([[-2.0, -1, 0], [-1, 1, 1], [0, 1, 2]])).clamp(0, 255)
    return _filtered(levels, torch.full((3, 3), 1 / 9))


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel[None, None].to(x.device))


def _equalised(levels: Tensor) -> Tensor:
    """Each image's levels, int64 (B, 1, H, W), spread out so that all are about as frequent."""
    flat = levels.flatten(1)
    counts = torch.zeros(len(flat), 256, device=flat.device).scatter_add_(1, flat, torch.ones_like(flat).float())
    lowest = counts.gather(1, flat.amin(1, keepdim=True))
    share = (counts.cumsum(1) - lowest) / (flat.shape[1] - lowest).clamp(min=1)
    return (share * 255).round().gather(1, flat).view(levels.shape)


def _luma(x: Tensor) -> Tensor:
    """(B, C, H, W) of three channels or one -> (B, 1, H, W)"""
    return x if x.shape[1] == 1 else (x * torch.tensor(LUMA, device=x.device).view(-1, 1, 1)).sum(1, keepdim=True)
