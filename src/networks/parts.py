"""What several networks share."""

from torch import nn


def require_image_size(network: str, image_size: int, minimum: int) -> None:
    """Raise ValueError if `image_size` (pixels) leaves `network` no map to look at."""
    if image_size < minimum:
        raise ValueError(
            f"image_size={image_size} is too small for {network}: it needs at least {minimum} px. "
            f"Set data.image_size={minimum} or larger, or choose a network that halves the image less often."
        )


def convolution(
    narrow: int, wide: int, kernel: int | tuple[int, int], padding: str = "same", norm: bool = False, pool: int = 0
) -> list[nn.Module]:
    """Convolution, batch norm with `norm`, max pool of side `pool` and stride 2 (0: none), ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(narrow, wide, kernel, padding=padding)]
    if norm:
        layers.append(nn.BatchNorm2d(wide))
    if pool:
        layers.append(nn.MaxPool2d(pool, stride=2))
    return [*layers, nn.ReLU(inplace=True)]


def kaiming_(network: nn.Module, linear: bool = False) -> None:
    """Draw the convolutions from Kaiming's normal, fan out (He et al. 2015, section 2.2); their biases become zero.

    With `linear` the linear layers are drawn from it too, fan in: for a stack of them behind ReLUs without batch
    norm, which N(0, 0.01) or PyTorch's own would let the signal fade in.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) or (linear and isinstance(module, nn.Linear)):
            # Its default gain is the ReLU's.
            nn.init.kaiming_normal_(module.weight, mode="fan_out" if isinstance(module, nn.Conv2d) else "fan_in")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
