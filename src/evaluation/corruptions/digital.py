"""What is done to an image once it is taken: contrast, colour, geometry, size, storage."""

from functools import cache
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from src.evaluation.corruptions.blur import along_axes, smooth
from src.evaluation.corruptions.draws import Draws


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
    down, right = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    middle, third = torch.tensor([width // 2, height // 2], device=x.device), side // 3
    points = (middle + third * torch.tensor([[1, 1], [1, -1], [-1, -1]], device=x.device)).float()
    moved = points + draws.uniform(-reach * side, reach * side, 3, 2)
    back = torch.linalg.solve(F.pad(moved, (0, 1), value=1.0), points.expand_as(moved))  # (B, 3, 2)
    place = (
        down[:, None, None] * back[:, None, None, 1] + right[:, None] * back[:, None, None, 0] + back[:, None, None, 2]
    )
    size = torch.tensor([width, height], device=x.device)
    x = F.grid_sample(x, 2 * place / (size - 1) - 1, padding_mode="reflection", align_corners=True)
    if not strength:
        return x
    move = smooth(draws.uniform(-1, 1, 2, height, width), smoothness * side, "reflect", truncate=3) * (strength * side)
    place = torch.stack([right + move[:, 0], down[:, None] + move[:, 1]], dim=3)  # (B, H, W, 2)
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
    """Stores each as a JPEG file and reads it."""
    pixels = images.permute(0, 2, 3, 1).cpu().numpy()
    out = np.empty_like(pixels)
    for image, decoded in zip(pixels, out, strict=True):
        file = BytesIO()
        Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image).save(file, "JPEG", quality=quality)
        decoded[:] = np.asarray(Image.open(file)).reshape(image.shape)
    return torch.from_numpy(out).to(images.device).permute(0, 3, 1, 2)
