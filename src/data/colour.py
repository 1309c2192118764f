"""Batched changes of colour and sharpness.

Each takes uint8 images (B, C, H, W), of three channels or one, and a number for each image (B,), and gives what
torchvision's `v2.functional` gives for one image and one number, to within a level.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as TF

from src.data.draw import Batch, Draw, Range, Transform


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _to_bytes(images * factor.view(-1, 1, 1, 1))


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the mean grey of each image."""
    pixels = images.float()
    return _blend(_grey(pixels).mean((1, 2, 3), keepdim=True), pixels, factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the grey image."""
    pixels = images.float()
    return _blend(_grey(pixels), pixels, factor) if images.shape[1] == 3 else images


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Away from the image smoothed by [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13; the border stays as it is."""
    pixels = images.float()
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = pixels[:, :, 1:-1, 1:-1]
    smooth = around.add_(inner, alpha=4).div_(13).round_()
    inner.copy_(smooth.lerp_(inner, factor.view(-1, 1, 1, 1)))
    return _to_bytes(pixels)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turns the hue by a share of the full circle."""
    if images.shape[1] == 1:
        return images
    # arithmetic alone: torch.where and % take ten times as long on a CPU
    red, green, blue = images.float().unbind(1)  # (B, H, W), whole numbers
    high, low = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = high - low
    is_red = (red - high + 1).clamp_(min=0)  # 1 where red is the highest, else 0
    is_green = (green - high + 1).clamp_(min=0) * (1 - is_red)
    of_green, of_blue = blue - red + 2 * chroma, red - green + 4 * chroma
    sixths = is_red * (green - blue) + is_green * of_green + (1 - is_red - is_green) * of_blue
    turns = sixths / (6 * chroma.clamp(min=1)) + turn.view(-1, 1, 1) + 1  # above 0
    of_channel = torch.arange(5, 0, -2, device=images.device).view(1, 3, 1, 1) / 6
    away = (turns.unsqueeze(1) + of_channel).frac_().mul_(6).sub_(2).abs_()  # sixths of the circle
    return _to_bytes(torch.addcmul(high.unsqueeze(1), chroma.unsqueeze(1), (2 - away).clamp_(0, 1), value=-1).round_())


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the highest `bits` of the 8, rounded to a whole number."""
    return images & (0xFF00 >> bits.round().int() & 0xFF).to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts what is at least `threshold`, 0..255."""
    bright = images >= threshold.ceil().to(torch.uint8).view(-1, 1, 1, 1)
    return images ^ bright.view(torch.uint8) * 255


def blur(images: Tensor, sigma: Tensor, size: int) -> Tensor:
    """Gaussian of `size` x `size` pixels, reflected at the border; its deviation is in pixels."""
    lines = images.shape[0] * images.shape[1]
    reach = torch.linspace(-1, 1, size, device=images.device) * (size - 1) / 8**0.5
    kernel = (-(reach / sigma[:, None]).square()).softmax(1).repeat_interleave(images.shape[1], 0)  # (B C, size)
    out = F.pad(images.float(), (size // 2,) * 4, "reflect").flatten(0, 1).unsqueeze(0)
    for shape in ((1, size, 1), (1, 1, size)):
        out = F.conv2d(out, kernel.view(-1, *shape), groups=lines)
    return _to_bytes(out.view_as(images).round_())


def _grey(pixels: Tensor) -> Tensor:
    return TF.rgb_to_grayscale(pixels).floor_()  # (B, 1, H, W)


def _blend(away: Tensor, pixels: Tensor, factor: Tensor) -> Tensor:
    factor = factor.view(-1, 1, 1, 1)
    return _to_bytes((pixels * factor).add_(away * (1 - factor)))


def _to_bytes(images: Tensor) -> Tensor:
    return images.clamp_(0, 255).to(torch.uint8)


class GaussianBlur(Transform):
    """Blurs each image by a deviation of its own, uniform in `sigma`, in pixels.

    Args:
        kernel_size: odd, in pixels.
    """

    def __init__(self, kernel_size: int, sigma: Range = (0.1, 2.0)) -> None:
        super().__init__()
        self.kernel_size, self.sigma = kernel_size, sigma

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        low, high = self.sigma
        return blur(images, low + (high - low) * draw.uniform(), self.kernel_size), labels
