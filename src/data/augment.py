"""Batched image transforms: one call for the whole batch, a separate random draw for every image.

What a transform gets and gives is said in `src.data.draw`.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from src.data.draw import Batch, Draw, Range, Transform

DENSE = 600_000  # multiplications a channel, up to which matrix products beat image by image on a CPU


def crop_each(images: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Cut `height` x `width` out of every image, image i at (top[i], left[i]).

    Lays a window of that shape over every byte of the batch (a view) and selects one window per image, so that no
    pixel needs an index of its own.
    """
    images = images.contiguous()
    plane, row = images.stride(1), images.stride(2)
    channels = images.shape[1]
    last = (channels - 1) * plane + (height - 1) * row + width - 1  # offset of a window's last pixel
    windows = images.as_strided((images.numel() - last, channels, height, width), (1, plane, row, 1))
    first = torch.arange(len(images), device=images.device) * images.stride(0)
    return windows.index_select(0, first + top * row + left)


def flip_each(images: Tensor, flip: Tensor) -> Tensor:
    """Mirror the images where `flip` (B,) is 1 or true, left to right."""
    images = images.contiguous()
    out = images.flip(-1)
    # half the time of choosing from both: where `flip` is 0, what differs is changed back, by bytes whatever the dtype
    changed, original = out.view(torch.uint8), images.view(torch.uint8)
    changed ^= original
    changed &= 255 * flip.to(torch.uint8).view(-1, 1, 1, 1)
    changed ^= original
    return out


class RandomCrop(Transform):
    """Pad every side and cut a random `size` x `size` square (He et al. 2015, section 4.2: pad 4 at 32 px).

    Args:
        padding: pixels on each side. An image larger than `size` is cropped as it is, without padding.
        mode: "zero" or "reflect".
        size: side of the square in pixels; None keeps the image's own height and width.
    """

    def __init__(self, padding: int = 4, mode: str = "zero", size: int | None = None) -> None:
        super().__init__()
        self.padding, self.mode, self.size = padding, mode, size

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        shape = images.shape[-2:]
        height, width = (self.size, self.size) if self.size else shape
        if self.padding and shape[0] <= height and shape[1] <= width:
            if self.mode == "reflect" and self.padding >= min(shape):
                raise ValueError(f"RandomCrop: padding={self.padding} is too much to reflect at {min(shape)} px.")
            images = F.pad(images, (self.padding,) * 4, "constant" if self.mode == "zero" else "reflect")
        padded_height, padded_width = images.shape[-2:]
        if padded_height < height or padded_width < width:
            raise ValueError(
                f"RandomCrop: {padded_height}x{padded_width} px (padding included) is smaller than size={self.size}; "
                f"resize the images first or raise padding={self.padding}."
            )
        top, left = draw.integers(padded_height - height + 1), draw.integers(padded_width - width + 1)
        return crop_each(images, top, left, height, width), labels


class RandomHorizontalFlip(Transform):
    """Mirror each image left to right with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        return flip_each(images, draw.uniform() < self.p), labels


class AlternatingFlip(Transform):
    """Mirror half of the images, chosen once for the whole training, and the other half in odd epochs.

    Every two epochs show each image both ways round (Jordan 2024, "94% on CIFAR-10 in 3.29 seconds", section 3.6).
    """

    needs_index = True

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        assert draw.index is not None
        return flip_each(images, (_coin(draw.index, draw.seed) + draw.epoch) % 2), labels


def _coin(index: Tensor, seed: int) -> Tensor:
    """A fair bit for each (image, seed), the same in every run: the finaliser of splitmix64, on 63 bits."""
    mask = 2**63 - 1  # clears the sign, so that >> shifts zeros in
    x = (index + seed * 1_000_003 + 1) * 0x1E3779B97F4A7C15 & mask
    x = (x ^ (x >> 30)) * 0x3F58476D1CE4E5B9 & mask
    x = (x ^ (x >> 27)) * 0x14D049BB133111EB & mask
    return (x ^ (x >> 31)) & 1


class RandomBox(Transform):
    """Draws one box per image: area uniform in `scale` (share of the image), aspect ratio log-uniform in `ratio`.

    Boxes are clipped to the image (torchvision draws again, up to ten times, instead).
    """

    def __init__(self, scale: Range, ratio: Range) -> None:
        super().__init__()
        self.scale, self.ratio = scale, ratio

    def boxes(self, draw: Draw, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Whole pixels, float (B,): top, left, height, width."""
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draw.uniform())
        low, high = np.log(self.ratio[0]), np.log(self.ratio[1])
        ratio = (low + (high - low) * draw.uniform()).exp()
        box_height = (area / ratio).sqrt().round().clamp(1, height)
        box_width = (area * ratio).sqrt().round().clamp(1, width)
        top = (draw.uniform() * (height - box_height + 1)).floor()
        left = (draw.uniform() * (width - box_width + 1)).floor()
        return top, left, box_height, box_width


class RandomResizedCrop(RandomBox):
    """Cut a random box and resize it to `size` x `size` (Szegedy et al. 2015, section 6), bilinear, antialiased.

    A resize is linear along each axis, so the whole batch is two batched matrix products, with torchvision's weights.
    They take O(size x height) for each output row: on a CPU, large images are resized one by one instead, which gives
    the same to within a level.
    """

    def __init__(self, size: int, scale: Range = (0.08, 1.0), ratio: Range = (3 / 4, 4 / 3)) -> None:
        super().__init__(scale, ratio)
        self.size = size

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        height, width = images.shape[-2:]
        boxes = self.boxes(draw, height, width)
        one_by_one = images.device.type == "cpu" and self.size * height * (width + self.size) > DENSE
        return (self._each if one_by_one else self._all)(images, *boxes), labels

    def _each(self, images: Tensor, *boxes: Tensor) -> Tensor:
        out = images.new_empty(*images.shape[:2], self.size, self.size)
        for source, target, box in zip(images, out, torch.stack(boxes, 1).long().tolist(), strict=True):
            top, left, height, width = box
            cut = source[None, :, top : top + height, left : left + width]
            target.copy_(F.interpolate(cut, target.shape[1:], mode="bilinear", antialias=True)[0])
        return out

    def _all(self, images: Tensor, top: Tensor, left: Tensor, box_height: Tensor, box_width: Tensor) -> Tensor:
        rows = self._weights(top, box_height, images.shape[2]).unsqueeze(1)  # (B, 1, size, H)
        columns = self._weights(left, box_width, images.shape[3]).transpose(1, 2)  # (B, W, size)
        narrow = images.float().flatten(1, 2) @ columns  # (B, C H, size): one product for all channels
        out = rows @ narrow.unflatten(1, images.shape[1:3])  # (B, C, size, size)
        return out if images.is_floating_point() else out.round_().clamp_(0, 255).to(images.dtype)

    def _weights(self, start: Tensor, extent: Tensor, length: int) -> Tensor:
        """Share of input pixel j in output pixel i, (B, size, length): a triangle as wide as the shrinking."""
        step = (extent / self.size)[:, None, None]  # input pixels per output pixel
        out = torch.arange(self.size, device=start.device)[None, :, None] + 0.5
        pixel = torch.arange(length, device=start.device)[None, None, :]
        start, end = start[:, None, None], (start + extent)[:, None, None]
        weights = (1 - (pixel + 0.5 - start - out * step).abs() / step.clamp(min=1)).clamp(min=0)
        weights = weights * ((pixel >= start) & (pixel < end))
        return weights / weights.sum(-1, keepdim=True)


class Cutout(Transform):
    """Set one `size` x `size` square to zero, that is to the mean (DeVries & Taylor 2017, section 3.2).

    Its centre is anywhere in the image, so part of the square may lie outside.
    """

    after_normalize = True

    def __init__(self, size: int = 16) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        height, width = images.shape[-2:]
        top, left = draw.integers(height) - self.size // 2, draw.integers(width) - self.size // 2
        hole = inside(top, top + self.size, left, left + self.size, height, width)
        return images.masked_fill(hole, 0.0), labels


class RandomErasing(RandomBox):
    """Set a random box to zero, that is to the mean, with probability `p` (Zhong et al. 2020, algorithm 1)."""

    after_normalize = True

    def __init__(self, p: float = 0.5, scale: Range = (0.02, 0.33), ratio: Range = (0.3, 3.3)) -> None:
        super().__init__(scale, ratio)
        self.p = p

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        height, width = images.shape[-2:]
        top, left, box_height, box_width = self.boxes(draw, height, width)
        erased = draw.uniform() < self.p  # the other boxes have no row
        hole = inside(top, top + box_height * erased, left, left + box_width, height, width)
        return images.masked_fill(hole, 0.0), labels


class ProgressiveResizing(Transform):
    """Shrink the images to `size` x `size` before epoch `until`, so that these epochs take less time (Howard 2018).

    Bilinear, antialiased. It is for networks that average over whatever map there is before their last layer: the
    ResNets, GoogLeNet, NIN, and the speedrun network. (B, C, H, W) -> (B, C, size, size)
    """

    after_normalize = True

    def __init__(self, size: int, until: int) -> None:
        super().__init__()
        self.size, self.until = size, until

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        if draw.epoch < self.until:
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return images, labels


def inside(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """Whether a pixel is in its image's box, (B, 1, H, W); `bottom` and `right` are the first ones outside."""
    rows = torch.arange(height, device=top.device)[None, :]
    columns = torch.arange(width, device=top.device)[None, :]
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])  # (B, W)
    return (in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1)


class PerImage(Transform):
    """Any torchvision v2 transform, called image by image so that each has a draw of its own.

    Args:
        transform: takes and returns an image tensor (C, H, W); all results must have one shape.
        after_normalize: give it normalised floats instead of uint8.

    Raises:
        ValueError: it returns something else, such as floats for the uint8 that it gets, which are normalised later.
    """

    def __init__(self, transform: nn.Module, after_normalize: bool = False) -> None:
        super().__init__()
        self.transform, self.after_normalize = transform, after_normalize

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        devices = [images.device.index] if images.is_cuda else []
        # v2 transforms draw from torch's global generators; torch.manual_seed takes a hundred times as long
        generators = [torch.default_generator, *(torch.cuda.default_generators[device] for device in devices)]
        out = []
        with torch.random.fork_rng(devices):
            for image, seed in zip(images, draw.on_cpu().integers(2**31).tolist(), strict=True):
                for generator in generators:
                    generator.manual_seed(seed)
                try:
                    out.append(self.transform(image))
                except TypeError as error:
                    raise ValueError(f"data.augment: {type(self.transform).__name__}: {error}") from error
        if wrong := [image for image in out if getattr(image, "dtype", None) != images.dtype]:
            made = getattr(wrong[0], "dtype", type(wrong[0]).__name__)
            told = f"{type(self.transform).__name__} returns {made} for {images.dtype}"
            raise ValueError(f"data.augment: {told}; its images must stay what they are, and are normalised later.")
        return torch.stack(out), labels
