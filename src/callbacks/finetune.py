"""Fine-tuning: train a network's head first, then all of it, the backbone at its own learning rate."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer


class Finetune(Callback):
    """Freezes everything but `network.head` until epoch `unfreeze_at`; None never unfreezes (a linear probe).

    Frozen batch norms use their running statistics and keep them. From the start the optimizer holds the
    backbone in groups of their own, at `backbone_lr` times the rate of the head, so schedules cover both; a
    parameter without a gradient is not stepped. (Lightning's BaseFinetuning adds a group when it unfreezes, which
    torch's schedulers refuse, and its frozen batch norms normalise by the batch.)

    Args:
        unfreeze_at: first epoch, counted from 0, that trains the whole network.
        backbone_lr: the backbone's learning rate as a factor of the head's.

    Raises:
        ValueError: `unfreeze_at` is negative or `backbone_lr` not positive.
    """

    def __init__(self, unfreeze_at: int | None = None, backbone_lr: float = 0.1) -> None:
        if unfreeze_at is not None and unfreeze_at < 0:
            raise ValueError(f"callbacks.finetune.unfreeze_at is an epoch from 0 on, or null, not {unfreeze_at}.")
        if backbone_lr <= 0:
            raise ValueError(f"callbacks.finetune.backbone_lr is a positive factor, not {backbone_lr}.")
        self.unfreeze_at = unfreeze_at
        self.backbone_lr = backbone_lr

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        module: Any = pl_module  # an ImageClassifier
        # Before the strategy wraps the module: DDP expects gradients of what is trainable then.
        freeze(module.network, True)
        self._plain_factory = module.optimizer_factory
        backbone = set(backbone_parameters(module.network))
        module.optimizer_factory = functools.partial(
            build_in_groups, module.optimizer_factory, backbone, self.backbone_lr
        )
        last = trainer.max_epochs
        if self.unfreeze_at is not None and last is not None and 0 <= last <= self.unfreeze_at:
            warnings.warn(
                f"callbacks.finetune.unfreeze_at={self.unfreeze_at} comes after the last epoch "
                f"(trainer.max_epochs={last}): only the head trains.",
                stacklevel=2,
            )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            module: Any = pl_module
            module.optimizer_factory = self._plain_factory

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(trainer, pl_module)  # a run resumed within an epoch does not start that epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(trainer, pl_module)

    def _follow(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: Any = pl_module.network
        frozen = self.unfreeze_at is None or trainer.current_epoch < self.unfreeze_at
        changes = freeze(network, frozen)
        for name, module in network.named_modules():
            if isinstance(module, _BatchNorm) and not in_head(name, network):
                module.train(not frozen)
        if changes and isinstance(trainer.strategy, DDPStrategy):
            # DDP averages the gradients of the parameters that were trainable when it was made: make it anew.
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()


def in_head(name: str, network: Any) -> bool:
    """Whether the parameter or module of that name belongs to the network's head."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in network.head)


def backbone_parameters(network: nn.Module) -> list[nn.Parameter]:
    """All parameters outside the head."""
    return [parameter for name, parameter in network.named_parameters() if not in_head(name, network)]


def freeze(network: nn.Module, frozen: bool) -> bool:
    """Take the gradients of the backbone away, or give them back; whether that changed anything."""
    changes = False
    for parameter in backbone_parameters(network):
        changes |= parameter.requires_grad == frozen
        parameter.requires_grad = not frozen
    return changes


def build_in_groups(
    factory: Callable[..., Optimizer], backbone: set[nn.Parameter], factor: float, parameters: list[Any]
) -> Optimizer:
    """The factory's optimizer, each of its groups split into head and backbone, the latter at `factor` of the rate."""
    groups = parameters if isinstance(parameters[0], dict) else [{"params": parameters}]
    heads = [{**group, "params": [p for p in group["params"] if p not in backbone]} for group in groups]
    backbones = [{**group, "params": [p for p in group["params"] if p in backbone]} for group in groups]
    optimizer = factory([*heads, *backbones])
    for group in optimizer.param_groups:
        if any(parameter in backbone for parameter in group["params"]):
            group["lr"] *= factor
    return optimizer
