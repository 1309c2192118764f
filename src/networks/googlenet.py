"""GoogLeNet (Inception v1): Szegedy et al. 2015, "Going deeper with convolutions", with batch norm."""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.networks.parts import Conv2d, require_image_size


class GoogLeNetOutput(NamedTuple):
    """What GoogLeNet returns in train mode: logits (B, num_classes), None from a head that is not there."""

    logits: Tensor
    aux1: Tensor | None  # after inception 4a
    aux2: Tensor | None  # after inception 4d


class GoogLeNet(nn.Module):
    """Nine inception modules (the paper's table 1), and auxiliary heads after 4a and 4d.

    images (B, channels, S, S) -> logits (B, num_classes), or a GoogLeNetOutput in train mode where there are auxiliary
    heads. Eval mode does not run them. At 224 px this is torchvision's network.

    `small_stem` (None: under 64 px) makes the first convolution 3x3 without stride and leaves out the stem's two
    max pools, so 3a sees the whole image. `true_5x5` gives the third branch the paper's kernel; torchvision and
    its weights have a 3x3 there. `transform_input` takes images normalised by ImageNet's mean and deviation to
    the mean and deviation of 0.5 that torchvision's weights expect.

    Initialisation: normal of deviation 0.01, truncated at two deviations, for convolutions and linear layers
    (the practice of the authors' later Inception code).

    Raises ValueError for an image under 15 px (2 px with the small stem), and for `transform_input` with other than
    three channels.
    """

    head = ("fc", "aux1", "aux2")
    training_only = ("aux1", "aux2")
    imagenet: Tensor  # (2, 3, 1, 1): the mean and deviation of ImageNet's images in [0, 1]

    def __init__(
        self,
        num_classes: int = 1000,
        image_size: int = 224,
        aux_heads: bool = True,
        true_5x5: bool = False,
        small_stem: bool | None = None,
        transform_input: bool = False,
        dropout: float = 0.2,
        dropout_aux: float = 0.7,
        channels: int = 3,
    ) -> None:
        super().__init__()
        self.small_stem = small_stem = image_size < 64 if small_stem is None else small_stem
        require_image_size("GoogLeNet", image_size, minimum=2 if small_stem else 15)
        if transform_input and channels != 3:
            raise ValueError(f"GoogLeNet: transform_input=true is for images of three channels, not {channels}.")
        self.torchvision_name = None if true_5x5 else "googlenet"
        self.transform_input = transform_input
        imagenet = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
        self.register_buffer("imagenet", imagenet, persistent=False)
        inception = partial(Inception, kernel5=5 if true_5x5 else 3)
        # The ReLU of a convolution before a pool follows the pool, in `forward`.
        self.conv1 = ConvNorm(channels, 64, 3 if small_stem else 7, stride=1 if small_stem else 2, relu=False)
        self.maxpool1 = nn.Identity() if small_stem else nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = ConvNorm(64, 64, 1)
        self.conv3 = ConvNorm(64, 192, 3, relu=False)
        self.maxpool2 = nn.Identity() if small_stem else nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.inception3a = inception(192, 64, 96, 128, 16, 32, 32)
        self.inception3b = inception(256, 128, 128, 192, 32, 96, 64)
        self.inception4a = inception(480, 192, 96, 208, 16, 48, 64)
        self.inception4b = inception(512, 160, 112, 224, 24, 64, 64)
        self.inception4c = inception(512, 128, 128, 256, 24, 64, 64)
        self.inception4d = inception(512, 112, 144, 288, 32, 64, 64)
        self.inception4e = inception(528, 256, 160, 320, 32, 128, 128)
        self.inception5a = inception(832, 256, 160, 320, 32, 128, 128)
        self.inception5b = inception(832, 384, 192, 384, 48, 128, 128)
        # Side of the maps of 4a to 4e: the 7x7 and each 3x3 pool halve, the first rounding up.
        side = image_size // 2 if small_stem else (image_size + 1) // 2 // 8
        self.aux1 = AuxiliaryHead(512, num_classes, side, dropout_aux) if aux_heads else None
        self.aux2 = AuxiliaryHead(528, num_classes, side, dropout_aux) if aux_heads else None
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(1024, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)

    def forward(self, images: Tensor) -> Tensor | GoogLeNetOutput:
        if self.transform_input:
            mean, deviation = self.imagenet
            images = (images * deviation + mean - 0.5) / 0.5
        x = F.relu(self.maxpool1(self.conv1(images)), inplace=True)  # (B, 64, S/4, S/4)
        x = F.relu(self.maxpool2(self.conv3(self.conv2(x))), inplace=True)  # (B, 192, S/8, S/8)
        x = F.max_pool2d(self.inception3b(self.inception3a(x)), 3, stride=2, ceil_mode=True)  # (B, 480, S/16, S/16)
        after_4a = self.inception4a(x)  # (B, 512, S/16, S/16)
        after_4d = self.inception4d(self.inception4c(self.inception4b(after_4a)))  # (B, 528, S/16, S/16)
        # A 3x3 pool in the paper; torchvision's is 2x2.
        x = F.max_pool2d(self.inception4e(after_4d), 2, ceil_mode=True)  # (B, 832, S/32, S/32)
        x = self.inception5b(self.inception5a(x)).mean((2, 3))  # (B, 1024)
        logits = self.fc(self.dropout(x))
        if not self.training or (self.aux1 is None and self.aux2 is None):
            return logits
        aux1 = self.aux1(after_4a) if self.aux1 is not None else None
        aux2 = self.aux2(after_4d) if self.aux2 is not None else None
        return GoogLeNetOutput(logits=logits, aux1=aux1, aux2=aux2)


class ConvNorm(nn.Module):
    """Convolution that keeps the size (divided by the stride), batch norm and, unless it comes later, ReLU."""

    def __init__(self, narrow: int, wide: int, kernel: int, stride: int = 1, relu: bool = True) -> None:
        super().__init__()
        self.conv = Conv2d(narrow, wide, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(wide, eps=0.001)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x, inplace=True) if self.relu else x


class Inception(nn.Module):
    """Figure 2b of the paper: 1x1, 3x3, "5x5" and pooled branches, side by side, behind 1x1 reductions.

    maps (B, C, H, W) -> (B, n1x1 + n3x3 + n5x5 + pool, H, W). `widths` are the channels that come in, then the
    columns of table 1 in its order.
    """

    def __init__(self, *widths: int, kernel5: int) -> None:
        super().__init__()
        channels, n1x1, reduce3x3, n3x3, reduce5x5, n5x5, pool = widths
        self.branch1 = ConvNorm(channels, n1x1, 1)
        self.branch2 = nn.Sequential(ConvNorm(channels, reduce3x3, 1), ConvNorm(reduce3x3, n3x3, 3))
        self.branch3 = nn.Sequential(ConvNorm(channels, reduce5x5, 1), ConvNorm(reduce5x5, n5x5, kernel5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), ConvNorm(channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class AuxiliaryHead(nn.Module):
    """Average pool to 4x4 (smaller maps stay as they are), 1x1 convolution, two linear layers.

    maps (B, C, side, side) -> logits (B, num_classes). The paper pools 5x5 with stride 3, which gives 4x4 at
    224 px; the adaptive pool is torchvision's and fits other sizes.
    """

    def __init__(self, channels: int, num_classes: int, side: int, dropout: float) -> None:
        super().__init__()
        self.side = min(side, 4)
        self.conv = ConvNorm(channels, 128, 1)
        self.fc1 = nn.Linear(128 * self.side**2, 1024)
        self.fc2 = nn.Linear(1024, num_classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.adaptive_avg_pool2d(x, self.side))  # (B, 128, 4, 4)
        x = F.relu(self.fc1(torch.flatten(x, 1)), inplace=True)
        return self.fc2(self.dropout(x))
