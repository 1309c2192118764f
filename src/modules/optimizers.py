"""Optimizers that torch lacks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from src.modules.precision import emulates

# Jordan et al. 2024, "Muon": a x + b x^3 + c x^5 takes singular values in (0, 1] to about 1 in a few rounds.
QUINTIC = (3.4445, -4.7750, 2.0315)


class Muon(Optimizer):
    """Muon for convolution filters, SGD with Nesterov momentum for every other parameter (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon).

    Filters (O, I, H, W) are stepped as matrices (O, I H W): their momentum is replaced by the nearest matrix with
    equal singular values, scaled to the norm of O filters of norm 1. torch's own Muon takes matrices alone.

    Args:
        lr: of the filters; with `fixed_norm` the size of a step relative to theirs. Schedules move the SGD with it.
        momentum: of the filters.
        iterations: Newton-Schulz rounds per step; 3 are enough here, language models take 5.
        fixed_norm: keep each convolution at the norm of O filters of norm 1, where a batch norm makes its scale
            meaningless (airbench94_muon).
        sgd_lr, sgd_momentum: of the other parameters.
        bias_factor: times `sgd_lr` for parameters of one dimension, the biases of the batch norms among them
            (hlb-CIFAR10; Jordan 2024, arXiv 2404.00498, section 3.4).
        weight_decay: decoupled, as in AdamW: each step takes away this share times the learning rate, without
            `bias_factor`.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.24,
        momentum: float = 0.6,
        iterations: int = 3,
        fixed_norm: bool = True,
        sgd_lr: float = 1.6,
        sgd_momentum: float = 0.85,
        bias_factor: float = 64.0,
        weight_decay: float = 0.016,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "iterations": iterations, "fixed_norm": fixed_norm}
        others = {"sgd_ratio": sgd_lr / lr, "sgd_momentum": sgd_momentum, "bias_factor": bias_factor}
        super().__init__(params, {**defaults, **others, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.ndim == 4:
                    self._step_filters(parameter, group)
                else:
                    self._step_other(parameter, group)
        return loss

    def _step_filters(self, filters: Tensor, group: dict[str, Any]) -> None:
        direction = self._nesterov(filters, group["momentum"])
        if group["fixed_norm"]:
            filters.mul_(len(filters) ** 0.5 / filters.norm())
        filters.mul_(1 - group["lr"] * group["weight_decay"])
        update = orthogonalise(direction.flatten(1), group["iterations"]).view(filters.shape)
        scale = max(1.0, len(filters) / filters[0].numel()) ** 0.5
        filters.add_(update, alpha=-group["lr"] * scale)

    def _step_other(self, parameter: Tensor, group: dict[str, Any]) -> None:
        lr = group["lr"] * group["sgd_ratio"]
        direction = self._nesterov(parameter, group["sgd_momentum"])
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(direction, alpha=-lr * (group["bias_factor"] if parameter.ndim == 1 else 1))

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        average = state["momentum"].mul_(momentum).add_(parameter.grad)
        return parameter.grad.add(average, alpha=momentum)  # type: ignore[union-attr]


def orthogonalise(matrix: Tensor, iterations: int) -> Tensor:
    """About the nearest matrix (M, N) whose singular values are all 1, by Newton-Schulz iteration in bfloat16.

    In 32 bits on a processor that only emulates bfloat16, where these products were a quarter of a step of cifar10_cpu.
    The singular values of the result lie between about 0.7 and 1.2 if those of `matrix` are not too small for the
    number of iterations; that is near enough for an optimizer, and needs no decomposition.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    dtype = torch.float32 if emulates("bf16", matrix.device) else torch.bfloat16
    x = (matrix.T if tall else matrix).to(dtype)
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
