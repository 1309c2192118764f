"""What a network costs: the figures that papers compare networks by."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

# Autograd's names of the operations of convolutions and linear layers.
WEIGHTED = ("ConvolutionBackward", "AddmmBackward", "MmBackward", "LinearBackward")


class Cost(NamedTuple):
    """The cost of one image through a network in eval mode; what only training runs is left out."""

    parameters: int
    fully_connected: int  # of these, in linear layers
    multiply_adds: int
    activation_memory: int  # bytes of float32 that a backward pass needs, weights and dropout masks left out
    depth: int  # layers with weights on the longest path


def describe(network: nn.Module, image_size: int) -> Cost:
    """The cost of `network` at (3, image_size, image_size), from shapes alone: nothing is computed.

    The network stays as it is; one built under `torch.device("meta")` takes no memory either.
    """
    network = copy.deepcopy(network).to("meta").float().eval().requires_grad_(True)
    weights = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}  # what autograd keeps for the backward pass, by storage

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()._cdata
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(torch.zeros(1, 3, image_size, image_size, device="meta"))
    named = list(network.named_parameters())
    gradients = torch.autograd.grad(logits.sum(), [p for _, p in named], retain_graph=True, allow_unused=True)
    used = {name: p for (name, p), gradient in zip(named, gradients, strict=True) if gradient is not None}
    linear = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    return Cost(
        parameters=sum(p.numel() for p in used.values()),
        fully_connected=sum(p.numel() for name, p in used.items() if name.rpartition(".")[0] in linear),
        multiply_adds=counter.get_total_flops() // 2,
        activation_memory=sum(tensor.untyped_storage().nbytes() for tensor in kept.values()),
        depth=_depth(logits),
    )


def _depth(logits: Tensor) -> int:
    """Weighted operations on the longest path from the images to the logits."""
    assert logits.grad_fn is not None
    depths: dict[object, int] = {}
    stack = [logits.grad_fn]
    while stack:
        node = stack[-1]
        inputs = [parent for parent, _ in node.next_functions if parent is not None]
        waiting = [parent for parent in inputs if parent not in depths]
        if waiting:
            stack += waiting
            continue
        stack.pop()
        weighted = node.name().startswith(WEIGHTED)
        depths[node] = max((depths[parent] for parent in inputs), default=0) + weighted
    return depths[logits.grad_fn]
