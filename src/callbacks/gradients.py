"""How large the gradients of some parts of a network are."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class GradientNorms(Callback):
    """Logs `train/grad_norm_PART`: the norm of a part's gradient before it is clipped, the mean of an epoch's steps.

    Steps with infinite gradients, which 16-mixed skips, do not count.

    Args:
        parts: submodules of the module's network by name, such as "conv1" or "features.0".

    Raises:
        ValueError: the network has no such part, or it has no parameters.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self.parts = list(parts)
        self.norms: dict[str, list[Tensor]] = {name: [] for name in self.parts}  # of this epoch, without dimension

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        network: Any = getattr(pl_module, "network", pl_module)
        found = {name: list(part.parameters()) for name, part in network.named_modules()}
        for name in self.parts:
            if not found.get(name):
                known = ", ".join(name for name, _ in network.named_children() if found[name])
                raise ValueError(
                    f"callbacks.gradients.parts={name}: no weights of the network; it has those of {known}."
                )
        self._weights = {name: found[name] for name in self.parts}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for norms in self.norms.values():  # those of a checkpoint are on the CPU
            norms[:] = [norm.to(pl_module.device) for norm in norms]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        for name, weights in self._weights.items():
            if gradients := [each.grad for each in weights if each in stepped and each.grad is not None]:
                self.norms[name].append(get_total_norm(gradients))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, norms in self.norms.items():
            if norms:
                found = torch.stack(norms)
                pl_module.log(f"train/grad_norm_{name}", found[found.isfinite()].mean())
                norms.clear()

    def state_dict(self) -> dict[str, Any]:
        return {name: torch.stack(norms).cpu() for name, norms in self.norms.items() if norms}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.norms = {name: list(state_dict.get(name, ())) for name in self.parts}
