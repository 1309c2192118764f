"""Figures with their targets, and the alternating measurement that makes a ratio of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Setting:
    """Where CIFAR-10 is, how often to measure, whether on the first GPU, and on how many files to start."""

    root: str
    repeats: int
    gpu: bool = False
    files: int = 1_280_000

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.gpu else "cpu")

    @property
    def trainer(self) -> list[str]:
        """Overrides of a training."""
        return ["trainer=gpu"] if self.gpu else ["trainer=cpu"]


def wait(device: torch.device) -> None:
    """Until all that was asked of a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Row:
    """One measured figure. `at_most` or `at_least` is the target; `detail` what the figure was made of."""

    name: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    detail: str = ""

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return f">= {self.at_least:g}" if self.at_least is not None else ""

    @property
    def holds(self) -> bool:
        above = self.at_most is not None and self.value > self.at_most
        below = self.at_least is not None and self.value < self.at_least
        return not (above or below)


def alternate(first: Callable[[], float], second: Callable[[], float], repeats: int) -> tuple[float, list[float]]:
    """The median of first / second over `repeats` alternating calls, and the median of each, in seconds."""
    pairs = [(first(), second()) for _ in range(repeats)]
    return median(a / b for a, b in pairs), [median(pair[i] for pair in pairs) for i in (0, 1)]
