"""The LightningModule of GoogLeNet: a loss that weights the two auxiliary classifiers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from src.modules.base import Step
from src.modules.classifier import ImageClassifier, count_hits

# What is left of the auxiliary weights when a part `done` in [0, 1] of the training lies behind.
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


class GoogLeNetClassifier(ImageClassifier):
    """Minimises main + w1 * aux1 + w2 * aux2 (Szegedy et al. 2015, section 5: w1 = w2 = 0.3).

    Also logs `train/aux1_loss train/aux1_acc` and the same for aux2. A head of weight 0 is taken out of the
    network, so that it costs nothing and leaves no parameter without a gradient; one that the network was built
    without has no weight.

    Args:
        aux_weight: one weight >= 0 for both heads, or a pair (w1, w2).
        aux_decay: "linear" or "cosine" takes the weights to 0 at the end of training; None keeps them.
    """

    def __init__(
        self, *args: Any, aux_weight: float | Sequence[float] = 0.3, aux_decay: str | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.aux_decay = aux_decay
        weights = [aux_weight] * 2 if isinstance(aux_weight, (int, float)) else aux_weight
        self.aux_weights = {}  # of the heads that there are
        for head, weight in zip(("aux1", "aux2"), weights, strict=True):
            if weight == 0:
                setattr(self.network, head, None)
            elif getattr(self.network, head) is not None:
                self.aux_weights[head] = weight

    def objective(self, output: Any, labels: Tensor) -> Step:
        if not self.aux_weights:
            return super().objective(output, labels)
        step = super().objective(output.logits, labels)
        loss = step.loss
        left = DECAYS[self.aux_decay](self.global_step / self.total_steps()) if self.aux_decay else 1.0
        for head, weight in self.aux_weights.items():
            logits = getattr(output, head)
            head_loss = self.loss(logits, labels)
            loss = loss + weight * left * head_loss
            step.sums[f"{head}_loss"] = head_loss.detach() * len(labels)
            step.sums[f"{head}_acc"] = count_hits(logits, labels)
        return step._replace(loss=loss)
