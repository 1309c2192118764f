"""The LightningModule of a classifier: images to one label.

Batches are `(images, labels)`: images float (B, 3, H, W); labels int64 (B,), where -1 marks a padding
image that counts nowhere, or float (B, K) class probabilities after MixUp or CutMix.
"""

from typing import Any

import torch
from torch import Tensor, nn

from src.modules.base import Step, Task
from src.modules.looking import looking_at
from src.modules.losses import CrossEntropy, counted


class ImageClassifier(Task):
    """Trains and evaluates a network on single-label images.

    Logs `train/loss train/acc val/loss val/acc val/acc_top5 test/...`; accuracies are fractions in [0, 1], top-5 where
    there are more than five classes.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        loss: called with logits (B, K) and labels, returns the mean; ignores the label -1.
        options: those of `Task`.
    """

    link: nn.Module = nn.Softmax(dim=1)  # from logits to probabilities

    def __init__(self, network: nn.Module, optimizer: Any, *, loss: nn.Module | None = None, **options: Any) -> None:
        super().__init__(network, optimizer, **options)
        self.loss_function = loss if loss is not None else CrossEntropy()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of logits (B, K). Override it for a new one: training and evaluation use it."""
        return self.loss_function(logits, labels)

    def setup(self, stage: str) -> None:
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        if getattr(data, "multilabel", False):
            raise ValueError(f"{type(data).__name__} has several labels an image: choose module@model=multilabel.")
        if stage == "fit" and (classes := getattr(data, "num_classes", None)) is not None:
            as_here = type(self).step is ImageClassifier.step and type(self).forward is Task.forward
            if as_here and isinstance(self.example_input_array, Tensor):
                self._try_network(self.example_input_array.to(self.device).type(self.dtype), classes)
            labels = torch.zeros(2, dtype=torch.int64, device=self.device)
            value = self.loss(torch.zeros(2, classes, device=self.device), labels)
            if not isinstance(value, Tensor) or value.ndim:
                raise ValueError(
                    f"the loss must return its mean over the images, one number; it returned {_described(value)}."
                )

    def _try_network(self, images: Tensor, classes: int) -> None:
        """Raises ValueError where images (N, C, H, W) do not become logits of so many classes that the metrics take."""
        takes = f"{type(self.network).__name__} must make logits {(len(images), classes)} of images {(*images.shape,)}"
        with looking_at(self):
            try:
                logits = self.network(images)
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"{takes}: {error}") from error
        if not isinstance(logits, Tensor) or logits.shape != (len(images), classes):
            raise ValueError(f"{takes}; it returned {_described(logits)}.")
        if "val" in self.metrics:
            self._update_metrics(self.metrics["val"].clone(), logits, torch.zeros_like(logits[:, 0]))

    def objective(self, output: Any, labels: Tensor) -> Step:
        """What to minimise and to log, of whatever the network returns in training."""
        return Step(self.loss(output, labels), len(labels), {"acc": count_hits(output, labels)}, output.detach())

    def step(self, batch: tuple[Tensor, Tensor], stage: str) -> Step:
        images, labels = batch
        output = self(images)
        if stage == "train":
            return self.objective(output, labels)
        count = counted(labels).sum()
        # One process's last batch can be padding alone: its mean loss is not a number and weighs nothing.
        loss = torch.where(count > 0, self.loss(output, labels), 0.0)
        sums = {"acc": count_hits(output, labels)}
        if output.shape[1] > 5:
            sums["acc_top5"] = (output.topk(5, dim=1).indices == labels[:, None]).sum()
        return Step(loss, count, sums, output)


def _described(value: Any) -> str:
    return f"a tensor {(*value.shape,)}" if isinstance(value, Tensor) else type(value).__name__


def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the logits (B, K) are largest at the label (B,), or at the likeliest of the soft labels (B, K)."""
    return (logits.argmax(dim=1) == (labels if labels.ndim == 1 else labels.argmax(dim=1))).sum()
