"""What a network looks at, layer by layer.

Said once: images are normalised, float (N, C, S, S); the network is in eval mode; its maps are float (N, D, H, H).
"""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

AT_ONCE = 8  # images whose maps are kept for a backward pass


@torch.no_grad()
def maps_of(network: nn.Module, images: Tensor, layers: Collection[str] | None = None) -> dict[str, Tensor]:
    """What layers make of images: square maps of more than one pixel, by name, in the order in which the layers end.

    A layer that runs more than once in the network is left out.

    Args:
        layers: the names of those to look at; None is all.
    """
    found: dict[str, list[Tensor]] = {}

    def keep(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
            found.setdefault(name, []).append(output.clone())  # the next layer may work in place

    named = [(name, layer) for name, layer in network.named_modules() if layers is None or name in layers]
    hooks = [layer.register_forward_hook(lambda _, given, out, name=name: keep(name, out)) for name, layer in named]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: outputs[0] for name, outputs in found.items() if len(outputs) == 1}


def one_of_each_size(maps: dict[str, Tensor], most: int = 4) -> list[str]:
    """The last layers whose maps have their size, at most so many, from the first size to the last."""
    last = list({output.shape[-1]: name for name, output in maps.items()}.values())
    return [last[i] for i in np.linspace(0, len(last) - 1, min(most, len(last))).round().astype(int)]


def grad_cam(network: nn.Module, images: Tensor, classes: Sequence[int], layer: str) -> NDArray[np.float32]:
    """Which part of the layer's maps speaks for a class, one for each image (Selvaraju et al. 2017, equations 1 and 2).

    The gradients of the network's parameters are lost.

    Returns:
        (N, S, S), from 0 to 1 in each image; all 0 where no part does.
    """
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    # Its place for a reshaping of maps takes copies of them: the next layer may work in place.
    cam = GradCAM(network, [network.get_submodule(layer)], reshape_transform=torch.clone)
    targets = [ClassifierOutputTarget(int(k)) for k in classes]
    parts = [np.zeros((0, *images.shape[2:]), np.float32)]
    for i in range(0, len(images), AT_ONCE):
        # Through frozen layers too there are gradients, if the images have some.
        parts.append(cam(images[i : i + AT_ONCE].detach().requires_grad_(), targets[i : i + AT_ONCE]))
    cam.activations_and_grads.release()
    heat = np.concatenate(parts)
    return heat / heat.max(axis=(1, 2), keepdims=True).clip(np.finfo(np.float32).tiny)  # the package adds 1e-7 to it


def first_filters(network: nn.Module, channels: int) -> tuple[str, NDArray[np.float32]] | None:
    """The name and the weights (D, channels, H, W) of the first convolution of images; None where there is none."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.in_channels == channels:
            return name, layer.weight.detach().float().cpu().numpy()
    return None
