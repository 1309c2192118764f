"""Batched affine transforms: one resampling of the whole batch, with a matrix for each image.

Images are uint8 (B, C, H, W); what comes from outside of one is black. The values are those of torchvision's
`v2.functional.affine`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.data.draw import Batch, Draw, Range, Transform

Parameter = Tensor | float  # (B,), or one for all


def affine(
    images: Tensor,
    *,
    angle: Parameter = 0.0,
    right: Parameter = 0.0,
    down: Parameter = 0.0,
    scale: Parameter = 1.0,
    shear_x: Parameter = 0.0,
    shear_y: Parameter = 0.0,
    mode: str = "nearest",
) -> Tensor:
    """Each image sheared, enlarged, turned around its centre and moved.

    Args:
        angle: degrees, clockwise.
        right, down: pixels.
        shear_x, shear_y: tangents of the angles: pixels a pixel.
        mode: "nearest" or "bilinear".
    """
    given = (angle, right, down, scale, shear_x, shear_y)
    turn, right, down, scale, shear_x, shear_y = (
        torch.as_tensor(each, dtype=torch.float32, device=images.device).expand(len(images)) for each in given
    )
    sin, cos = turn.deg2rad().sin(), turn.deg2rad().cos()
    a, c = cos + sin * shear_y, sin - cos * shear_y
    b, d = -a * shear_x - sin, cos - c * shear_x
    # from a place in the result to one in the image, both from the centre
    inverse = torch.stack([d, -b, -c, a], 1).view(-1, 2, 2) / scale.view(-1, 1, 1)
    moved = -inverse @ torch.stack([right, down], 1).unsqueeze(2)
    height, width = images.shape[-2:]
    half = torch.tensor([[width / 2], [height / 2]], device=images.device)  # torch counts from -1 to 1
    of_x, of_y, offset = (torch.cat([inverse, moved], 2) / half).view(-1, 2, 3, 1, 1).unbind(2)
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
        angle, right, down, shear = (2 * draw.uniform(4) - 1).unbind(1)
        out = affine(
            images,
            angle=angle * self.degrees,
            right=(right * self.translate[0] * width).round(),
            down=(down * self.translate[1] * height).round(),
            scale=self.scale[0] + (self.scale[1] - self.scale[0]) * draw.uniform(),
            shear_x=(shear * self.shear).deg2rad().tan(),
            mode=self.interpolation,
        )
        return out, labels


class RandomRotation(RandomAffine):
    """Turns each image by an angle uniform in -degrees .. degrees."""

    def __init__(self, degrees: float, interpolation: str = "nearest") -> None:
        super().__init__(degrees, interpolation=interpolation)
