"""What is done to an image once it is taken: contrast, colour, geometry, size, storage."""

from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import fft
from torch import Tensor
from torch.nn import functional as F

from src.evaluation.corruptions.blur import along_axes, smooth
from src.evaluation.corruptions.draws import Draws
from src.evaluation.slices import LUMA

# Brightness and the differences of blue and red from it, of red, green and blue (JFIF 1.02).
YCC = (LUMA, (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def contrast(images: Tensor, draws: Draws, factor: float) -> Tensor:
    """Towards each channel's mean."""
    x = images / 255
    mean = x.mean((2, 3), keepdim=True)
    return (x - mean) * factor + mean


def saturate(images: Tensor, draws: Draws, factor: float, more: float) -> Tensor:
    """Multiplies and raises the saturation of hue, saturation and value; a grey pixel's hue is red."""
    x = images / 255
    if x.shape[1] == 1:
        return images
    value = x.amax(1, keepdim=True)
    away = value - x  # (B, 3, H, W): how much of it each channel lacks
    most = away.amax(1, keepdim=True)
    saturation = (most / value.clamp(min=1e-6) * factor + more).clamp(max=1)
    red = torch.tensor([0.0, 1, 1], device=x.device).view(3, 1, 1)
    return value * (1 - saturation * torch.where(most > 0, away / most, red))


def elastic(images: Tensor, draws: Draws, strength: float, smoothness: float, reach: float) -> Tensor:
    """Moves three points and the image with them, then each pixel by a smooth field; in shares of the side."""
    x, (height, width) = images / 255, images.shape[-2:]
    side = min(height, width)
    size = torch.tensor([width, height], device=x.device)
    points = (size // 2 + side // 3 * torch.tensor([[1, 1], [1, -1], [-1, -1]], device=x.device)).float()  # x, y
    moved = points + draws.uniform(-reach * side, reach * side, 3, 2)
    back = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), points.expand_as(moved))  # (B, 3, 2)
    axes = (torch.arange(n, device=x.device, dtype=torch.float32) for n in (width, height))
    here = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=2)  # (H, W, 2)
    place = (F.pad(here, (0, 1), value=1.0).flatten(0, 1) @ back).view(-1, height, width, 2)
    x = F.grid_sample(x, 2 * place / (size - 1) - 1, padding_mode="reflection", align_corners=True)
    if not strength:
        return x
    move = smooth(draws.uniform(-1, 1, 2, height, width), smoothness * side, "reflect", truncate=3) * (strength * side)
    place = here + move.permute(0, 2, 3, 1)
    return F.grid_sample(x, (2 * place + 1) / size - 1, padding_mode="reflection", align_corners=False)


def pixelate(images: Tensor, draws: Draws, share: float) -> Tensor:
    """Shrinks to a share of the sides by the mean of each box, and enlarges again."""
    x = along_axes(images.float(), *(_boxes(side, share, images.device) for side in images.shape[-2:]))
    return x.round().to(torch.uint8)


@cache
def _boxes(side: int, share: float, device: torch.device) -> Tensor:
    """What Pillow's two resizings make of each pixel of a row, (side, side)."""
    each = Image.fromarray(np.eye(side, dtype=np.float32))
    for length in (int(side * share), side):
        each = each.resize((side, length), Image.Resampling.BOX)
    return torch.from_numpy(np.array(each)).to(device)


def jpeg(images: Tensor, draws: Draws, quality: int) -> Tensor:
    """What a JPEG file keeps of each: cosine coefficients of 8 x 8 pixels, rounded; of colour at half the size."""
    height, width = images.shape[-2:]
    x = F.pad(images.float(), (0, -width % 16, 0, -height % 16), mode="replicate")
    if x.shape[1] == 1:
        return _coded(x, quality, 0)[..., :height, :width].to(torch.uint8)
    ycc = torch.einsum("dc, bchw -> bdhw", torch.tensor(YCC, device=x.device), x).round()
    luma = _coded(ycc[:, :1], quality, 0)[..., :height, :width]
    bias = torch.tensor([0.25, 0.5], device=x.device).repeat(ycc.shape[3] // 4)  # as libjpeg rounds, in turn
    half = (F.avg_pool2d(ycc[:, 1:], 2) + bias).floor()
    chroma = _coded(half + 128, quality, 1)[..., : -(-height // 2), : -(-width // 2)] - 128
    blue, red = F.interpolate(chroma, scale_factor=2, mode="bilinear")[..., :height, :width].round().split(1, 1)
    x = torch.cat([luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue], 1)
    return x.round().clamp(0, 255).to(torch.uint8)


def _coded(x: Tensor, quality: int, table: int) -> Tensor:
    """Levels (B, C, H, W), sides multiples of 8, their cosine coefficients rounded by one of Pillow's two tables."""
    rows, columns = (_cosines(side, x.device) for side in x.shape[-2:])
    steps = _steps(quality, x.device)[table].repeat(len(rows) // 8, len(columns) // 8)
    coefficients = (along_axes(x - 128, rows, columns) / steps).round() * steps
    return (along_axes(coefficients, rows.T, columns.T) + 128).round().clamp(0, 255)


@cache
def _cosines(side: int, device: torch.device) -> Tensor:
    """The orthonormal cosine transform of every 8 pixels, (side, side)."""
    eight = torch.from_numpy(fft.dct(np.eye(8, dtype=np.float32), axis=0, norm="ortho"))
    return torch.block_diag(*[eight] * (side // 8)).to(device)


@cache
def _steps(quality: int, device: torch.device) -> Tensor:
    """What coefficients are multiples of: of brightness, and of colour (2, 8, 8)."""
    Image.new("RGB", (8, 8)).save(file := BytesIO(), "JPEG", quality=quality)
    made: Any = Image.open(file)
    return torch.tensor([made.quantization[table] for table in (0, 1)], device=device).view(2, 8, 8).float()
