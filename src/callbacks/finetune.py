"""Fine-tuning: train a network's head first, then all of it, the backbone at its own learning rate."""

import warnings
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from src.modules.base import Task


class Finetune(Callback):
    """Freezes everything but `network.head` until epoch `unfreeze_at`; None never unfreezes (a linear probe).

    Frozen batch norms use their running statistics and keep them. From the start the optimizer holds the
    backbone in groups of their own, at `backbone_lr` times the rate of the head, so schedules cover both; a
    parameter without a gradient is not stepped. (Lightning's BaseFinetuning adds a group when it unfreezes, which
    torch's schedulers refuse, and its frozen batch norms normalise by the batch.)

    Args:
        unfreeze_at: first epoch, counted from 0, that trains the whole network.
        backbone_lr: the backbone's learning rate as a factor of the head's.
    """

    def __init__(self, unfreeze_at: int | None = None, backbone_lr: float = 0.1) -> None:
        self.unfreeze_at = unfreeze_at
        self.backbone_lr = backbone_lr

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.network: Any = getattr(pl_module, "network", pl_module)
        if not head_of(self.network):
            raise ValueError(
                f"callbacks=finetune trains the head first, and {type(self.network).__name__} does not say which that "
                'is: give it an attribute, such as head = ("fc",).'
            )
        self.backbone = [
            (parameter, parameter.requires_grad)  # what the network itself keeps fixed stays so
            for name, parameter in self.network.named_parameters()
            if not in_head(name, self.network)
        ]
        self._freeze(True)  # before the strategy wraps the module: DDP expects gradients of what is trainable then
        if isinstance(pl_module, Task):
            pl_module.rate_factors = {parameter: self.backbone_lr for parameter, _ in self.backbone}
        else:
            warnings.warn(
                f"callbacks.finetune.backbone_lr={self.backbone_lr} is left to {type(pl_module).__name__}, which makes "
                "its optimizer itself.",
                stacklevel=2,
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
            self._freeze(False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # a run resumed within an epoch does not start that epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        frozen = self.unfreeze_at is None or trainer.current_epoch < self.unfreeze_at
        changes = self._freeze(frozen)
        for name, module in self.network.named_modules():
            if isinstance(module, _BatchNorm) and not in_head(name, self.network):
                module.train(not frozen)
        if changes and isinstance(trainer.strategy, DDPStrategy):
            # DDP averages the gradients of the parameters that were trainable when it was made: make it anew.
            trainer.strategy.model = pl_module
            trainer.strategy.configure_ddp()

    def _freeze(self, frozen: bool) -> bool:
        """Takes the gradients of the backbone away, or gives them back; whether that changed anything."""
        changed = [parameter for parameter, trains in self.backbone if trains and parameter.requires_grad == frozen]
        for parameter in changed:
            parameter.requires_grad_(not frozen)
        return bool(changed)


def head_of(network: Any) -> tuple[str, ...]:
    """The names of the layers in the network's head; empty where it does not say."""
    head = getattr(network, "head", None) or ()
    return ("head",) if isinstance(head, nn.Module) else (head,) if isinstance(head, str) else tuple(head)


def in_head(name: str, network: Any) -> bool:
    """Whether the parameter or module of that name belongs to the network's head."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in head_of(network))
