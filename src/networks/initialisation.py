"""The initialisation that the networks with ReLUs share."""

from __future__ import annotations

from torch import nn


def kaiming_(network: nn.Module) -> None:
    """Draw every convolution from Kaiming's normal, fan out (He et al. 2015, section 2.2); biases become zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
