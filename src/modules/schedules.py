"""Learning-rate schedules that torch lacks.

They are functions of the step alone: a resumed run that has another length follows the schedule of that length.
"""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR


class CosineWithWarmup(LambdaLR):
    """Linear warm-up, then half a cosine (Goyal et al. 2017; Loshchilov and Hutter 2017).

    Args:
        total_steps: length of the training, in the steps at which the schedule moves.
        warmup: part of `total_steps`, in [0, 1), in which the rate rises.
        start, end: the first and last rate, relative to the highest.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup: float = 0.05, start: float = 0.01, end: float = 0.0
    ) -> None:
        rise = round(warmup * total_steps)

        def factor(step: int) -> float:
            if step < rise:
                return start + (1 - start) * step / rise
            done = min(1.0, (step - rise) / max(1, total_steps - rise))
            return end + (1 - end) * (1 + math.cos(math.pi * done)) / 2

        super().__init__(optimizer, factor)


class Triangle(LambdaLR):
    """Linear up, then linear down (Smith 2017; with these numbers Jordan 2024, arXiv 2404.00498, section 3.5).

    Args:
        total_steps: length of the training, in the steps at which the schedule moves.
        start, end: the first and last rate, relative to the highest.
        peak: part of `total_steps`, in [0, 1), at which the rate is highest; 0 only goes down.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, start: float = 0.2, peak: float = 0.23, end: float = 0.07
    ) -> None:
        rise = peak * total_steps

        def factor(step: int) -> float:
            if step < rise:
                return start + (1 - start) * step / rise
            return 1 + (end - 1) * min(1.0, (step - rise) / (total_steps - rise))

        super().__init__(optimizer, factor)


class OneCycle(OneCycleLR):
    """torch's OneCycleLR, but each group of parameters goes up to its own rate, where torch has one for all.

    And it follows the length of a resumed run: torch's keeps that of the start, and then fails.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, **options: Any) -> None:
        super().__init__(optimizer, [group["lr"] for group in optimizer.param_groups], total_steps, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        length = ("total_steps", "_schedule_phases")
        super().load_state_dict({name: value for name, value in state_dict.items() if name not in length})
