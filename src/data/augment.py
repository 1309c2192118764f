"""Batched image transforms: one call for the whole batch, a separate random draw for every image.

A transform is an `nn.Module` with `forward(images, labels, draw) -> (images, labels)`. `images` is (B, 3, H, W),
uint8 or float in 0..255; `labels` is int64 (B,) or, once mixed, float (B, K). The ones with
`after_normalize = True` get the normalised float images instead. `draw` is the batch's only source of chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2

Batch = tuple[Tensor, Tensor]


class Draw:
    """The random numbers of one batch, and what a transform may know about it.

    Stateless: they depend on (seed, epoch, batch) alone, so a resumed run draws what the uninterrupted one draws.
    Every number is drawn for the global batch of `world * size` images on the CPU, and this rank keeps its own
    ([rank::world], as DistributedSampler deals them): one process or two, CPU or GPU, the draws are the same.

    Args:
        size: images in this rank's batch.
        epoch, batch: position of the batch in the training.
        index: the images' positions in the training set (B,), for the transforms with `needs_index`.
        num_classes: K, for the transforms that make soft labels.
    """

    def __init__(
        self,
        size: int,
        *,
        seed: int = 0,
        epoch: int = 0,
        batch: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        index: Tensor | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.size, self.seed, self.epoch, self.batch = size, seed, epoch, batch
        self.rank, self.world, self.device = rank, world, device
        self.index, self.num_classes = index, num_classes
        # torch's CPU generator keeps 32 bits of its seed: hash the three numbers instead of adding them
        state = np.random.SeedSequence((seed, epoch, batch)).generate_state(1)
        self.generator = torch.Generator().manual_seed(int(state[0]))

    def _mine(self, numbers: Tensor) -> Tensor:
        return numbers[self.rank :: self.world].to(self.device, non_blocking=True)

    def uniform(self, *shape: int) -> Tensor:
        """Floats in [0, 1), (B, *shape)."""
        return self._mine(torch.rand(self.size * self.world, *shape, generator=self.generator))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Integers 0 .. high-1, (B, *shape)."""
        return self._mine(torch.randint(high, (self.size * self.world, *shape), generator=self.generator))

    def beta(self, alpha: float) -> Tensor:
        """Beta(alpha, alpha), (B,)."""
        seed = int(torch.randint(2**62, (), generator=self.generator))  # torch's Beta takes no generator
        numbers = np.random.default_rng(seed).beta(alpha, alpha, self.size * self.world)
        return self._mine(torch.from_numpy(numbers.astype(np.float32)))


class Transform(nn.Module):
    """Base of the batched transforms."""

    after_normalize = False
    needs_index = False

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        raise NotImplementedError


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
    """Mirror the images where `flip` (B,) is true, left to right."""
    both = torch.cat([images, images.flip(-1)])
    return both.index_select(0, torch.arange(len(images), device=images.device) + flip * len(images))


class RandomCrop(Transform):
    """Pad every side and cut a random `size` x `size` square (He et al. 2015, section 4.2: pad 4 at 32 px).

    Args:
        padding: pixels on each side. An image larger than `size` is cropped as it is, without padding.
        mode: "zero" or "reflect".
        size: side of the square in pixels; None keeps the image's own height and width.
    """

    def __init__(self, padding: int = 4, mode: str = "zero", size: int | None = None) -> None:
        super().__init__()
        if mode not in ("zero", "reflect"):
            raise ValueError(f"RandomCrop: mode={mode!r} is unknown; choose 'zero' or 'reflect'.")
        self.padding, self.mode, self.size = padding, mode, size

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        height, width = (self.size, self.size) if self.size else images.shape[-2:]
        if self.padding and images.shape[-2] <= height and images.shape[-1] <= width:
            images = self._pad(images)
        room = images.shape[-2] - height, images.shape[-1] - width
        if min(room) < 0:
            raise ValueError(
                f"RandomCrop: an image of {images.shape[-2]}x{images.shape[-1]} px (padding included) is smaller than "
                f"size={self.size}; resize it first or raise padding={self.padding}."
            )
        top, left = draw.integers(room[0] + 1), draw.integers(room[1] + 1)
        return crop_each(images, top, left, height, width), labels

    def _pad(self, images: Tensor) -> Tensor:
        pad = (self.padding,) * 4
        if self.mode == "zero":
            return F.pad(images, pad)
        if max(pad) >= min(images.shape[-2:]):
            raise ValueError(
                f"RandomCrop: padding={self.padding} with mode='reflect' needs images of more than {self.padding} px; "
                f"these are {images.shape[-2]}x{images.shape[-1]}."
            )
        return F.pad(images, pad, mode="reflect")


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
        return flip_each(images, (self._coin(draw.index, draw.seed) + draw.epoch) % 2), labels

    @staticmethod
    def _coin(index: Tensor, seed: int) -> Tensor:
        """A fair bit for each (image, seed), the same in every run: the finaliser of splitmix64, on 63 bits."""
        mask = 2**63 - 1  # clears the sign, so that >> shifts zeros in
        x = (index + seed * 1_000_003 + 1) * 0x1E3779B97F4A7C15 & mask
        x = (x ^ (x >> 30)) * 0x3F58476D1CE4E5B9 & mask
        x = (x ^ (x >> 27)) * 0x14D049BB133111EB & mask
        return (x ^ (x >> 31)) & 1


class Resize(Transform):
    """Resize the shorter side to `size` px, bilinear with antialiasing."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        return v2.functional.resize(images, [self.size], antialias=True), labels


class RandomResizedCrop(Transform):
    """Cut a random box and resize it to `size` x `size` (Szegedy et al. 2015, section 6), bilinear, antialiased.

    One box per image: area uniform in `scale` (share of the image), aspect ratio log-uniform in `ratio`, clipped to
    the image (torchvision draws again, up to ten times, instead). A resize is linear along each axis, so the whole
    batch is two batched matrix products, with torchvision's weights.
    """

    def __init__(
        self, size: int, scale: Sequence[float] = (0.08, 1.0), ratio: Sequence[float] = (3 / 4, 4 / 3)
    ) -> None:
        super().__init__()
        self.size, self.scale, self.ratio = size, tuple(scale), tuple(ratio)

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        height, width = images.shape[-2:]
        box_height, box_width = self.boxes(draw, height, width)
        top = (draw.uniform() * (height - box_height + 1)).floor()
        left = (draw.uniform() * (width - box_width + 1)).floor()
        return self.resize_boxes(images, top, left, box_height, box_width), labels

    def boxes(self, draw: Draw, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Whole heights and widths (B,) in pixels."""
        area = height * width * (self.scale[0] + (self.scale[1] - self.scale[0]) * draw.uniform())
        low, high = np.log(self.ratio[0]), np.log(self.ratio[1])
        ratio = (low + (high - low) * draw.uniform()).exp()
        return (area / ratio).sqrt().round().clamp(1, height), (area * ratio).sqrt().round().clamp(1, width)

    def resize_boxes(self, images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
        """The boxes of `images` (B, 3, H, W), resized: (B, 3, size, size) in the dtype of `images`."""
        rows = self._weights(top, height, images.shape[-2]).unsqueeze(1)  # (B, 1, size, H)
        columns = self._weights(left, width, images.shape[-1]).transpose(1, 2)  # (B, W, size)
        narrow = images.float().flatten(1, 2) @ columns  # (B, 3 H, size): one product for the three channels
        out = rows @ narrow.unflatten(1, images.shape[1:3])  # (B, 3, size, size)
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
        hole = _inside(top, top + self.size, left, left + self.size, height, width)
        return images.masked_fill(hole, 0.0), labels


class MixUp(Transform):
    """Blend each image and its label with another of the batch (Zhang et al. 2018, equation 1).

    The weight is Beta(alpha, alpha), one per image. The partner is half a batch away, which is as random as the
    shuffled batch itself and stays on the same rank: at an even batch size two processes mix what one would.
    """

    after_normalize = True

    def __init__(self, alpha: float = 0.2) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"MixUp: alpha={alpha} must be above 0.")
        self.alpha = alpha

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        weight = draw.beta(self.alpha)
        images = torch.lerp(_partner(images), images, weight.view(-1, 1, 1, 1))
        return images, mix_labels(labels, weight, draw.num_classes)


class CutMix(Transform):
    """Paste a box of another image and mix the labels by area (Yun et al. 2019, section 3.1, equations 1 and 2).

    One box per image, its area Beta(alpha, alpha); the partner is chosen as in MixUp.
    """

    after_normalize = True

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"CutMix: alpha={alpha} must be above 0.")
        self.alpha = alpha

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        height, width = images.shape[-2:]
        side = (1 - draw.beta(self.alpha)).sqrt()
        half_height, half_width = (side * height / 2).long(), (side * width / 2).long()
        row, column = draw.integers(height), draw.integers(width)
        box = _inside(row - half_height, row + half_height, column - half_width, column + half_width, height, width)
        weight = 1 - box.sum((1, 2, 3)) / (height * width)  # after clipping at the border
        return torch.where(box, _partner(images), images), mix_labels(labels, weight, draw.num_classes)


def _partner(batch: Tensor) -> Tensor:
    return batch.roll(len(batch) // 2, 0)


def _inside(top: Tensor, bottom: Tensor, left: Tensor, right: Tensor, height: int, width: int) -> Tensor:
    """Whether a pixel is in its image's box, (B, 1, H, W); `bottom` and `right` are the first ones outside."""
    rows = torch.arange(height, device=top.device)[None, :]
    columns = torch.arange(width, device=top.device)[None, :]
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])  # (B, W)
    return (in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1)


def mix_labels(labels: Tensor, weight: Tensor, num_classes: int | None) -> Tensor:
    """`weight` (B,) of each own label and the rest of the partner's: float (B, K)."""
    if not labels.is_floating_point():
        assert num_classes is not None
        labels = F.one_hot(labels, num_classes).float()
    return torch.lerp(_partner(labels), labels, weight.view(-1, 1))


class PerImage(Transform):
    """Any torchvision v2 transform, called image by image so that each has a draw of its own.

    Args:
        transform: takes and returns an image tensor (3, H, W); all results must have one shape.
        after_normalize: give it normalised floats instead of uint8.
    """

    def __init__(self, transform: nn.Module, after_normalize: bool = False) -> None:
        super().__init__()
        self.transform, self.after_normalize = transform, after_normalize

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        seeds = draw.integers(2**31).tolist()
        devices = [images.device] if images.is_cuda else []
        out = []
        with torch.random.fork_rng(devices):  # v2 transforms draw from torch's global generator
            for image, seed in zip(images, seeds, strict=True):
                torch.manual_seed(seed)
                out.append(self.transform(image))
        return torch.stack(out), labels


class Preprocess(nn.Module):
    """uint8 (B, 3, H, W) of any size -> normalised float32 (B, 3, image_size, image_size).

    Resizes the shorter side to `resize` px (bilinear, antialiased) and cuts the centre, then takes
    (x / 255 - mean) / std per channel. What validation, test, prediction and export see.

    Args:
        mean, std: three floats each, of images in 0..1.
        resize: None is `image_size`, which leaves images that are already of that size alone.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, image_size: int, mean: Sequence[float], std: Sequence[float], resize: int | None = None) -> None:
        super().__init__()
        self.spec: dict[str, Any] = {
            "image_size": image_size,
            "mean": [float(x) for x in mean],
            "std": [float(x) for x in std],
            "resize": resize,
        }
        self.size, self.shorter = image_size, resize or image_size
        mean_, std_ = (
            torch.tensor(x, dtype=torch.float64).view(3, 1, 1) for x in (self.spec["mean"], self.spec["std"])
        )
        self.register_buffer("scale", (1 / (255 * std_)).float(), persistent=False)
        self.register_buffer("shift", (-mean_ / std_).float(), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.normalize(self.fit(images))

    def fit(self, images: Tensor) -> Tensor:
        """Resize and centre-crop to (B, 3, image_size, image_size)."""
        if min(images.shape[-2:]) != self.shorter:
            images = v2.functional.resize(images, [self.shorter], antialias=True)
        if images.shape[-2:] != (self.size, self.size):
            images = v2.functional.center_crop(images, [self.size, self.size])
        return images

    def normalize(self, images: Tensor) -> Tensor:
        return (images * self.scale).add_(self.shift)
