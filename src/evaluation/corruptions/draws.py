"""Random numbers that are hashed, not drawn one after another: the same on every device, in every order."""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

LEVELS = 2**16  # of a number
STEP, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # of 64 bits


class Draws:
    """The random numbers of some images, each image's from a key of its own.

    Number i of a key is the finaliser of splitmix64 (Steele et al. 2014, "Fast splittable pseudorandom number
    generators") of the key plus i steps; each gives four numbers of 16 bits.

    Args:
        positions: what tells the images apart, int64 (B,).
        entropy: whole numbers from 0 on that tell this use of them from others.
    """

    def __init__(self, positions: Tensor, *entropy: int) -> None:
        start = int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> np.uint64(1))
        self.keys, self.used = _mixed(positions * STEP + start), 0

    def bits(self, *shape: int) -> Tensor:
        """Whole numbers from 0 to 65,535, int32 (B, *shape)."""
        count = math.prod(shape)
        counter = torch.arange(self.used, self.used + -(-count // 4), device=self.keys.device)
        self.used += len(counter)
        numbers = _mixed(self.keys[:, None] + counter * STEP).view(torch.int16)[:, :count]
        return (numbers.int() & LEVELS - 1).view(-1, *shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Whole numbers from 0 to `high` - 1, which is less than 2**15, int32 (B, *shape)."""
        return self.bits(*shape) * high >> 16

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Floats in [low, high), (B, *shape)."""
        return self.bits(*shape) * ((high - low) / LEVELS) + low

    def normal(self, *shape: int) -> Tensor:
        """Floats of mean 0 and deviation 1, (B, *shape)."""
        return chosen(_quantiles(self.keys.device), self.bits(*shape))


def _mixed(x: Tensor) -> Tensor:
    x ^= x >> 30 & 2**34 - 1  # the shift of an int64 copies its sign, which the mask takes away
    x *= FIRST
    x ^= x >> 27 & 2**37 - 1
    x *= SECOND
    x ^= x >> 31 & 2**33 - 1
    return x


def chosen(table: Tensor, which: Tensor) -> Tensor:
    """The entries of a table (N,) at whole numbers of any shape; `table[which]` takes ten times as long on a CPU."""
    return table.index_select(0, which.flatten()).view(which.shape)


@cache
def _quantiles(device: torch.device) -> Tensor:
    return torch.special.ndtri((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS).float().to(device)
