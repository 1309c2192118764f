"""What a network costs: the figures that papers compare networks by."""

import copy
from typing import Any, NamedTuple

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


def describe(network: nn.Module, image_size: int, channels: int = 3) -> Cost:
    """The cost of `network` at (channels, image_size, image_size), from shapes alone: nothing is computed.

    The network stays as it is; one built under `torch.device("meta")` takes no memory either.
    """
    network = copy.deepcopy(network).to("meta").float().eval().requires_grad_(True)
    weights = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, Tensor] = {}  # what autograd keeps for the backward pass, by storage

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    counter = FlopCounterMode(display=False)
    with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(torch.zeros(1, channels, image_size, image_size, device="meta"))
    layers = {p: layer for layer in network.modules() for p in layer.parameters(recurse=False)}
    gradients = torch.autograd.grad(logits.sum(), list(layers), retain_graph=True, allow_unused=True)
    used = {p: layer for (p, layer), gradient in zip(layers.items(), gradients, strict=True) if gradient is not None}
    return Cost(
        parameters=sum(p.numel() for p in used),
        fully_connected=sum(p.numel() for p, layer in used.items() if isinstance(layer, nn.Linear)),
        multiply_adds=counter.get_total_flops() // 2,
        activation_memory=sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in weights),
        depth=_depth(logits.grad_fn),
    )


def _depth(last: Any) -> int:
    """Weighted operations on the longest path from the images to the node `last` of autograd's graph."""
    depths: dict[Any, int] = {}
    stack = [last]
    while stack:
        parents = [parent for parent, _ in stack[-1].next_functions if parent is not None]
        if waiting := [parent for parent in parents if parent not in depths]:
            stack += waiting
        else:
            node = stack.pop()
            depths[node] = max((depths[p] for p in parents), default=0) + node.name().startswith(WEIGHTED)
    return depths[last]
