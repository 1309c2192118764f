"""The initialisation that the networks with ReLUs share."""

from __future__ import annotations

from torch import nn


def kaiming_(network: nn.Module, linear: bool = False) -> None:
    """Draw the convolutions from Kaiming's normal, fan out (He et al. 2015, section 2.2); their biases become zero.

    With `linear` the linear layers are drawn from it too, fan in: for a stack of them behind ReLUs without batch
    norm, which N(0, 0.01) or PyTorch's own would let the signal fade in.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif linear and isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)
