"""Averages of weights."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def warmed_up_average(decay: float) -> Callable[[list[Tensor], list[Tensor], Any], None]:
    """Called with the averages, the weights and the steps n so far; changes the averages in place.

    They keep the share min(decay, (1 + n) / (10 + n)), so that the average of a short run does not hang on to the
    initial weights (as in TensorFlow's ExponentialMovingAverage).
    """

    def average(averaged: list[Tensor], current: list[Tensor], steps: Any) -> None:
        kept = min(decay, (1 + int(steps)) / (10 + int(steps)))
        get_ema_multi_avg_fn(kept)(averaged, current, steps)

    return average


def real_numbers(module: nn.Module) -> dict[str, Tensor]:
    """Its parameters and buffers that are real numbers, by name; no copies."""
    return {name: value for name, value in module.state_dict().items() if value.is_floating_point()}
