"""The LightningModule of every network: steps, metrics and optimisers.

Batches are `(images, labels)`: images float (B, 3, H, W); labels int64 (B,), where -1 marks a padding
image that counts nowhere, or float (B, K) class probabilities after MixUp or CutMix.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

IGNORE = -1
CHECK_EVERY = 20  # steps between two looks for a loss that is not finite; each waits for the device


class ImageClassifier(LightningModule):
    """Trains and evaluates a network on single-label images.

    Logs `train/loss train/acc val/loss val/acc val/acc_top5 test/...`, each once an epoch and over all
    processes; accuracies are fractions in [0, 1], losses means over images.

    Args:
        network: maps images (B, 3, H, W) to logits (B, K).
        optimizer: called with the parameters, e.g. a partial of `torch.optim.SGD`.
        scheduler: `factory` (called with the optimizer, and with `total_steps` if it takes that and has no
            value for it) plus Lightning's `interval`, `frequency` and `monitor`; None for a constant rate.
        loss: called with logits (B, K) and labels, returns the mean; ignores the label -1.
        decay_norms_and_biases: False takes parameters of one dimension out of the weight decay.
        channels_last: keep weights and images in that memory format.
        compile: compile the network in place with `torch.compile`.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Callable[..., Optimizer],
        scheduler: dict[str, Any] | None = None,
        loss: nn.Module | None = None,
        decay_norms_and_biases: bool = True,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        if compile:
            self.network.compile()
        self.optimizer_factory = optimizer
        self.scheduler_config = scheduler
        self.loss_function = loss if loss is not None else nn.CrossEntropyLoss(ignore_index=IGNORE)
        self.decay_norms_and_biases = decay_norms_and_biases
        self.sums = {"train": Sums(), "val": Sums(), "test": Sums()}

    def forward(self, images: Tensor) -> Any:
        """Logits (B, K) of images (B, 3, H, W); in train mode whatever the network returns."""
        return self.network(images.contiguous(memory_format=self.memory_format))

    def loss(self, output: Any, labels: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Loss to minimise, logits (B, K), and per-batch sums of anything else to log. Override for a new loss."""
        return self.loss_function(output, labels), output, {}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        loss, logits, extra = self.loss(self(images), labels)
        sums = {"loss": loss.detach() * len(images), "acc": count_hits(logits, labels), **extra}
        self.sums["train"].add(len(images), sums)
        if (batch_idx + 1) % CHECK_EVERY == 0:
            self._check_loss()
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str) -> None:
        images, labels = batch
        logits = self(images)
        count = (labels != IGNORE).sum()
        # One process's last batch can be padding alone: its mean loss is not a number and weighs nothing.
        loss = torch.where(count > 0, self.loss_function(logits, labels), 0.0) * count
        top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]
        self.sums[stage].add(count, {"loss": loss, "acc": count_hits(logits, labels), "acc_top5": top5.sum()})

    def _check_loss(self) -> None:
        losses = self.sums["train"].flush().get("loss", torch.zeros(0))
        finite = torch.isfinite(losses)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            step = self.trainer.fit_loop.epoch_loop.total_batch_idx - (len(losses) - 1 - first)
            raise FloatingPointError(
                f"the training loss became {losses[first].item()} at step {step} (epoch {self.current_epoch}); "
                "the last good checkpoint is kept. Try a lower optimizer.lr, a warm-up (scheduler=cosine), "
                "trainer.gradient_clip_val=1 or trainer.precision=32-true."
            )

    def on_validation_epoch_start(self) -> None:
        if not self.trainer.sanity_checking and self.trainer.state.fn == "fit":
            self._check_loss()  # before a checkpoint of this epoch is written

    def on_train_epoch_end(self) -> None:
        self._check_loss()
        self._log_means("train")

    def on_validation_epoch_end(self) -> None:
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        self._log_means("test")

    def _log_means(self, stage: str) -> None:
        means = self.sums[stage].means(lambda sums: self.trainer.strategy.reduce(sums, reduce_op="sum"))
        self.log_dict({f"{stage}/{name}": value for name, value in means.items()})
        self.sums[stage] = Sums()

    def configure_optimizers(self) -> Any:
        try:
            return self._configure_optimizers()
        except TypeError as error:  # torch compares a value of the wrong type, or does not know an argument
            arguments = getattr(self.optimizer_factory, "keywords", {})
            raise ValueError(f"the optimizer ({arguments}) or its scheduler cannot be made: {error}") from error

    def _configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory(self._parameter_groups())
        if self.scheduler_config is None:
            return optimizer
        config = dict(self.scheduler_config)
        factory = config.pop("factory")
        total = inspect.signature(factory).parameters.get("total_steps")
        scheduler = (
            factory(optimizer, total_steps=self._total_steps(config["interval"]))
            if total is not None and total.default in (None, inspect.Parameter.empty)
            else factory(optimizer)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **config}}

    def _total_steps(self, interval: str) -> int:
        total = self.trainer.max_epochs if interval == "epoch" else self.trainer.estimated_stepping_batches
        if total is None or not 1 <= total < float("inf"):
            raise ValueError(
                f"the scheduler must know where training ends, but trainer.max_epochs={self.trainer.max_epochs} and "
                f"trainer.max_steps={self.trainer.max_steps}: set one, or choose scheduler=none, step or plateau"
            )
        return int(total)

    def _parameter_groups(self) -> list[Any]:
        parameters = list(self.network.parameters())  # frozen ones too: they may be trained later
        if self.decay_norms_and_biases:
            return parameters
        return [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_sums"] = self.sums["train"].state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "train_sums" in checkpoint:
            self.sums["train"] = Sums(**checkpoint["train_sums"])


@torch.no_grad()
def count_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the logits (B, K) are largest at the label (B,), or at the likeliest of the soft labels (B, K)."""
    return (logits.argmax(dim=1) == (labels if labels.ndim == 1 else labels.argmax(dim=1))).sum()


class Sums:
    """Sums over the images of an epoch. Adding a batch waits for no device and copies nothing."""

    def __init__(
        self,
        count: Tensor | int = 0,
        totals: dict[str, Tensor] | None = None,
        pending: dict[str, Tensor] | None = None,
    ) -> None:
        self.count = count
        self.totals = totals or {}
        self.pending = {name: list(values) for name, values in (pending or {}).items()}

    def add(self, count: Tensor | int, sums: dict[str, Tensor]) -> None:
        """Adds one batch of `count` images; each value is a sum over them, a tensor without dimension."""
        self.count = self.count + count
        for name, value in sums.items():
            self.pending.setdefault(name, []).append(value)

    def flush(self) -> dict[str, Tensor]:
        """Moves what was added since the last call into the totals, and returns it: one value (N,) a batch."""
        added = {
            name: torch.stack([value.to(values[-1].device) for value in values]).float()  # a checkpoint's: on the CPU
            for name, values in self.pending.items()
        }
        for name, each in added.items():
            total = each.sum()
            self.totals[name] = self.totals[name].to(total.device) + total if name in self.totals else total
        self.pending = {}
        return added

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Mean over images of each value; `reduce` sums a tensor (V,) over all processes."""
        self.flush()
        if not self.totals:
            return {}
        values = torch.stack(list(self.totals.values()))  # (V,)
        count = torch.as_tensor(self.count, dtype=values.dtype, device=values.device)
        *sums, count = reduce(torch.cat([values, count[None]]))
        return {name: total / count for name, total in zip(self.totals, sums, strict=True)}

    def state(self) -> dict[str, Any]:
        """Plain containers and tensors for a checkpoint; `Sums(**state)` restores them.

        What is pending is kept apart: a float sum depends, in its last bit, on where it is split.
        """
        pending = {name: torch.stack(values) for name, values in self.pending.items()}
        return {"count": int(self.count), "totals": dict(self.totals), "pending": pending}
