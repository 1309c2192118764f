"""Batched transforms that mix images with each other, and their labels alike.

What a transform gets and gives is said in `src.data.draw`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from src.data.augment import inside
from src.data.draw import Batch, Draw, Transform


class _Mix(Transform):
    """Mixes each image and its label with another of the batch; a subclass says how, in `mix`.

    The partner is half a batch away, which is as random as the shuffled batch itself and stays on the same rank: at
    an even batch size two processes mix what one would. Labels become float (B, K).

    Args:
        alpha: of the weight, Beta(alpha, alpha).
        p: chance of an image to be mixed at all.
        until: the first epoch, counted from 0, that mixes nothing any more; None mixes to the end.
    """

    after_normalize = True

    def __init__(self, alpha: float = 1.0, p: float = 1.0, until: int | None = None) -> None:
        super().__init__()
        self.alpha, self.p, self.until = alpha, p, until

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        if self.until is not None and draw.epoch >= self.until:
            return images, labels
        if not labels.is_floating_point():
            labels = F.one_hot(labels, draw.num_classes).float()
        half = len(images) // 2
        mixed, weight = self.mix(images, images.roll(half, 0), draw)
        if self.p < 1:
            left = draw.uniform() >= self.p
            mixed, weight = torch.where(left.view(-1, 1, 1, 1), images, mixed), weight.masked_fill(left, 1)
        return mixed, torch.lerp(labels.roll(half, 0), labels, weight.view(-1, 1))

    def mix(self, images: Tensor, partners: Tensor, draw: Draw) -> Batch:
        """The mixed images, and the weight (B,) of each own label."""
        raise NotImplementedError


class MixUp(_Mix):
    """Blend each image with another (Zhang et al. 2018, equation 1), by a weight of its own: Beta(alpha, alpha)."""

    def __init__(self, alpha: float = 0.2, p: float = 1.0, until: int | None = None) -> None:
        super().__init__(alpha, p, until)

    def mix(self, images: Tensor, partners: Tensor, draw: Draw) -> Batch:
        weight = draw.beta(self.alpha)
        return torch.lerp(partners, images, weight.view(-1, 1, 1, 1)), weight


class CutMix(_Mix):
    """Paste a box of another image and mix the labels by area (Yun et al. 2019, section 3.1, equations 1 and 2).

    One box per image, its area Beta(alpha, alpha).
    """

    def mix(self, images: Tensor, partners: Tensor, draw: Draw) -> Batch:
        height, width = images.shape[-2:]
        side = (1 - draw.beta(self.alpha)).sqrt()
        half_height, half_width = (side * height / 2).long(), (side * width / 2).long()
        row, column = draw.integers(height), draw.integers(width)
        box = inside(row - half_height, row + half_height, column - half_width, column + half_width, height, width)
        kept = 1 - box.sum((1, 2, 3)) / (height * width)  # after clipping at the border
        return torch.where(box, partners, images), kept


class MixUpOrCutMix(_Mix):
    """CutMix with the chance `switch`, else MixUp, chosen for each image.

    Args:
        switch: chance of CutMix.
        mixup, cutmix: the `alpha` of each.
        p, until: of both, see `_Mix`.
    """

    def __init__(
        self, switch: float = 0.5, mixup: float = 0.2, cutmix: float = 1.0, p: float = 1.0, until: int | None = None
    ) -> None:
        super().__init__(p=p, until=until)
        self.switch, self.mixup, self.cutmix = switch, MixUp(mixup), CutMix(cutmix)

    def mix(self, images: Tensor, partners: Tensor, draw: Draw) -> Batch:
        blended, weight = self.mixup.mix(images, partners, draw)
        pasted, kept = self.cutmix.mix(images, partners, draw)
        cut = draw.uniform() < self.switch
        return torch.where(cut.view(-1, 1, 1, 1), pasted, blended), torch.where(cut, kept, weight)
