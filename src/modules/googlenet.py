"""The LightningModule of GoogLeNet: a loss that weights the two auxiliary classifiers."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from src.modules.classifier import ImageClassifier, Objective, count_hits

# What is left of the auxiliary weights when a part `done` in [0, 1] of the training lies behind.
DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


class GoogLeNetClassifier(ImageClassifier):
    """Minimises main + w1 * aux1 + w2 * aux2 (Szegedy et al. 2015, section 5: w1 = w2 = 0.3).

    Also logs `train/aux1_loss train/aux1_acc` and the same for aux2. A head of weight 0 is taken out of the
    network, so that it costs nothing and leaves no parameter without a gradient.

    Args:
        aux_weight: one weight >= 0 for both heads, or a pair (w1, w2).
        aux_decay: "linear" or "cosine" takes the weights to 0 at the end of training; None keeps them.
    """

    def __init__(
        self, *args: Any, aux_weight: float | Sequence[float] = 0.3, aux_decay: str | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        weights = (aux_weight, aux_weight) if isinstance(aux_weight, (int, float)) else tuple(aux_weight)
        self.aux_weights = {"aux1": weights[0], "aux2": weights[1]}
        self.aux_decay = aux_decay
        for head, weight in self.aux_weights.items():
            if weight == 0:
                setattr(self.network, head, None)

    def objective(self, output: Any, labels: Tensor) -> Objective:
        if not any(self.aux_weights.values()):
            return super().objective(output, labels)
        loss = self.loss(output.logits, labels)
        left = DECAYS[self.aux_decay](self.global_step / self.total_steps()) if self.aux_decay else 1.0
        sums = {}
        for head, weight in self.aux_weights.items():
            if weight == 0:
                continue
            logits = getattr(output, head)
            head_loss = self.loss(logits, labels)
            loss = loss + weight * left * head_loss
            sums[f"{head}_loss"] = head_loss.detach() * len(labels)
            sums[f"{head}_acc"] = count_hits(logits, labels)
        return Objective(loss, output.logits, sums)
