"""The random numbers of the training batches, and the base of the transforms that use them.

A transform is an `nn.Module` with `forward(images, labels, draw) -> (images, labels)`. `images` is (B, C, H, W),
uint8 or float in 0..255; `labels` is int64 (B,) or, once mixed or multi-label, float (B, K). The ones with
`after_normalize = True` get the normalised float images instead. `draw` is the batch's only source of chance.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]  # images, labels
Range = Sequence[float]  # lowest and highest


def hashed_generator(*numbers: int) -> torch.Generator:
    """A generator on the CPU, seeded by a hash: neighbouring numbers, such as seeds, give unrelated streams.

    Zeros at the end do not count.
    """
    # torch's CPU generator keeps 32 bits of its seed: hash the numbers instead of adding them
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


@dataclass
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
        kind: keeps streams apart: 0 for a batch, 2 for an image by itself, whose index then takes the place of `batch`.
    """

    size: int
    seed: int = 0
    epoch: int = 0
    batch: int = 0
    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"
    index: Tensor | None = None
    num_classes: int = -1
    kind: int = 0

    def __post_init__(self) -> None:
        self.generator = hashed_generator(self.seed, self.epoch, self.batch, self.kind)

    def _mine(self, numbers: Tensor) -> Tensor:
        return numbers[self.rank :: self.world].to(self.device, non_blocking=True)

    def uniform(self, *shape: int) -> Tensor:
        """Floats in [0, 1), (B, *shape)."""
        return self._mine(torch.rand(self.size * self.world, *shape, generator=self.generator))

    def integers(self, high: int, *shape: int) -> Tensor:
        """Integers 0 .. high-1, (B, *shape)."""
        return self._mine(torch.randint(high, (self.size * self.world, *shape), generator=self.generator))

    def on_cpu(self) -> "Draw":
        """This draw with its numbers left on the CPU, where a choice made by them waits for no GPU."""
        here = copy(self)
        here.device = "cpu"
        return here

    def beta(self, alpha: float) -> Tensor:
        """Beta(alpha, alpha), (B,)."""
        seed = int(torch.randint(2**62, (), generator=self.generator))  # torch's Beta takes no generator
        numbers = np.random.default_rng(seed).beta(alpha, alpha, self.size * self.world)
        return self._mine(torch.from_numpy(numbers.astype(np.float32)))


class Transform(nn.Module):
    """Base of the batched transforms; a subclass gives `forward`."""

    after_normalize = False
    needs_index = False
