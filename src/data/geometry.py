"""Batched affine transforms: one resampling of the whole batch, with a matrix for each image.

Images are uint8 (B, C, H, W); what comes from outside of one is black. The values are those of torchvision's
`v2.functional.affine`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.data.draw import Batch, Draw, Range, Transform


def affine(images: Tensor, angle: Tensor, translate: Tensor, scale: Tensor, shear: Tensor, mode: str) -> Tensor:
    """Each image sheared, enlarged, turned around its centre and moved.

    Args:
        angle: degrees, clockwise (B,).
        translate: pixels to the right and down (B, 2).
        scale: factor (B,).
        shear: tangents of the angles along x and y: pixels a pixel (B, 2).
        mode: "nearest" or "bilinear".
    """
    sin, cos = angle.deg2rad().sin(), angle.deg2rad().cos()
    a, c = cos + sin * shear[:, 1], sin - cos * shear[:, 1]
    b, d = -a * shear[:, 0] - sin, cos - c * shear[:, 0]
    # from a place in the result to one in the image, both from the centre
    inverse = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / scale.view(-1, 1, 1)
    matrix = torch.cat([inverse, -inverse @ translate.unsqueeze(2)], 2)
    height, width = images.shape[-2:]
    half = torch.tensor([[width / 2], [height / 2]], device=images.device)  # torch counts from -1 to 1
    of_x, of_y, offset = (matrix / half).view(-1, 2, 3, 1, 1).unbind(2)
    x, y = (torch.arange(side, device=images.device) - (side - 1) / 2 for side in (width, height))
    grid = of_x * x + (of_y * y[:, None] + offset)  # (B, 2, H, W)
    out = F.grid_sample(images.float(), grid.permute(0, 2, 3, 1), mode, align_corners=False)
    return out.round_().to(images.dtype)


class RandomAffine(Transform):
    """Turns, moves, enlarges and shears each image by draws of its own.

    Args:
        degrees: the angle is uniform in -degrees .. degrees.
        translate: largest shares of width and height to move by, in whole pixels.
        scale: lowest and highest factor.
        shear: the angle of the shear along x is uniform in -shear .. shear, in degrees.
        interpolation: "nearest" or "bilinear".
    """

    def __init__(
        self,
        degrees: float,
        translate: Range = (0, 0),
        scale: Range = (1, 1),
        shear: float = 0,
        *,
        interpolation: str = "nearest",
    ) -> None:
        super().__init__()
        self.degrees, self.translate, self.scale, self.shear = degrees, translate, scale, shear
        self.interpolation = interpolation

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        height, width = images.shape[-2:]
        drawn = 2 * draw.uniform(4) - 1
        most = torch.tensor([self.translate[0] * width, self.translate[1] * height], device=images.device)
        scale = self.scale[0] + (self.scale[1] - self.scale[0]) * draw.uniform()
        tangent = (drawn[:, 3] * self.shear).deg2rad().tan()
        shear, move = torch.stack([tangent, torch.zeros_like(tangent)], 1), (drawn[:, 1:3] * most).round()
        return affine(images, drawn[:, 0] * self.degrees, move, scale, shear, self.interpolation), labels


class RandomRotation(RandomAffine):
    """Turns each image by an angle uniform in -degrees .. degrees."""

    def __init__(self, degrees: float, interpolation: str = "nearest") -> None:
        super().__init__(degrees, interpolation=interpolation)
