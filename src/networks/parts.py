"""What several networks share."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    layers: list[nn.Module] = [Conv2d(narrow, wide, kernel, padding=padding)]
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


WEIGHTS_A_PLACE = 50_000  # a convolution of so many for each place of its maps is quicker as a matrix product


class Conv2d(nn.Conv2d):
    """torch's, but a matrix product for small maps in bfloat16 on processors with AMX, where it is quicker.

    oneDNN's 3x3 convolution takes 2.9 times as long for maps (250, 512, 2, 2), 2.1 times for (250, 512, 4, 4) and 1.6
    times for (125, 160, 2, 2), 0.95 times as long for (125, 256, 4, 4) and 0.7 times for (125, 96, 4, 4); without AMX
    0.8 times for (128, 512, 4, 4). (Forward and backward, 2 cores of an Intel Xeon, torch 2.15.0.)
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or not self._is_quicker_as_product(input):
            return super().forward(input)
        maps = ConvolutionAsProduct.apply(input.bfloat16(), self.weight.bfloat16())
        return maps if self.bias is None else maps + self.bias.bfloat16()[:, None, None]

    def _is_quicker_as_product(self, input: Tensor) -> bool:
        if input.device.type != "cpu" or not has_amx():
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        area = input.shape[2] * input.shape[3]
        small = dtype == torch.bfloat16 and area <= 16 and self.weight.numel() >= WEIGHTS_A_PLACE * area
        centred = all(side % 2 for side in self.kernel_size)
        centred &= self.padding in ("same", tuple(side // 2 for side in self.kernel_size))
        plain = self.stride == self.dilation == (1, 1) and self.groups == 1 and self.padding_mode == "zeros"
        return small and centred and plain


@cache
def has_amx() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in tiles; False where torch does not say."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16"))


class ConvolutionAsProduct(torch.autograd.Function):
    """maps (B, C, H, W), filters (O, C, K, L) of odd sides -> (B, O, H, W), with zeros around the maps."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, filters: Tensor) -> Tensor:
        ctx.save_for_backward(maps, filters)
        rows = _patches(maps, filters) @ filters.permute(0, 2, 3, 1).flatten(1).T
        return rows.view(len(maps), *maps.shape[2:], -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        maps, filters = ctx.saved_tensors
        of_maps = of_filters = None
        if ctx.needs_input_grad[0]:
            of_maps = ConvolutionAsProduct.apply(gradient, filters.flip(2, 3).transpose(0, 1))
        if ctx.needs_input_grad[1]:
            rows = gradient.permute(0, 2, 3, 1).flatten(0, 2)  # (B H W, O)
            of_filters = rows.T @ _patches(maps, filters)
            of_filters = of_filters.view(len(filters), *filters.shape[2:], -1).permute(0, 3, 1, 2)
        return of_maps, of_filters


def _patches(maps: Tensor, filters: Tensor) -> Tensor:
    """What each place of the filters sees: (B H W, K L C)."""
    high, wide = filters.shape[2:]
    padded = F.pad(maps.permute(0, 2, 3, 1), (0, 0, wide // 2, wide // 2, high // 2, high // 2))
    patches = padded.unfold(1, high, 1).unfold(2, wide, 1)  # (B, H, W, C, K, L)
    return patches.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(0, 2)
