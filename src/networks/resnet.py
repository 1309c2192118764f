"""ResNet: He et al. 2016, "Deep residual learning for image recognition"."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from src.networks.parts import Conv2d, kaiming_

# Table 1 of the paper: blocks per stage.
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class ResNet(nn.Module):
    """ResNet-18 and 34 of basic blocks, ResNet-50 and 101 of bottlenecks (the paper's table 1).

    images (B, channels, S, S) -> logits (B, num_classes), for any S. At 224 px this is torchvision's network.
    `small_stem` (None: under 64 px) makes the first convolution 3x3 without stride and leaves out the max pool.

    Initialisation: Kaiming normal, fan out (He et al. 2015, section 2.2).

    Raises ValueError for a depth the table does not have.
    """

    head = ("fc",)

    def __init__(
        self,
        depth: int = 18,
        num_classes: int = 1000,
        image_size: int = 224,
        small_stem: bool | None = None,
        channels: int = 3,
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"No ResNet of depth {depth}: choose one of {', '.join(map(str, BLOCKS))}.")
        self.torchvision_name = f"resnet{depth}"
        self.small_stem = image_size < 64 if small_stem is None else small_stem
        kernel, stride = (3, 1) if self.small_stem else (7, 2)
        self.conv1 = nn.Conv2d(channels, 64, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.Identity() if self.small_stem else nn.MaxPool2d(3, stride=2, padding=1)
        block = BasicBlock if depth < 50 else Bottleneck
        wider = block.expansion
        counts = BLOCKS[depth]
        self.layer1 = _stage(block, 64, 64, counts[0])
        self.layer2 = _stage(block, 64 * wider, 128, counts[1], stride=2)
        self.layer3 = _stage(block, 128 * wider, 256, counts[2], stride=2)
        self.layer4 = _stage(block, 256 * wider, 512, counts[3], stride=2)
        self.fc = nn.Linear(512 * wider, num_classes)
        kaiming_(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.maxpool(self.bn1(self.conv1(images))), inplace=True)  # (B, 64, S/4, S/4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, C, S/32, S/32)
        return self.fc(x.mean((2, 3)))


class CifarResNet(nn.Module):
    """The CIFAR-10 network of section 4.2: three stages of 16, 32 and 64 channels, depth 6n + 2.

    images (B, channels, S, S) -> logits (B, num_classes), for any S; the last map is 8x8 at 32 px. The shortcuts have
    no parameters (option A): where the width doubles they skip every other pixel and pad channels with zeros.

    Initialisation: Kaiming normal, fan out (He et al. 2015, section 2.2).

    Raises ValueError for a depth that is not 6n + 2.
    """

    head = ("fc",)

    def __init__(self, depth: int = 20, num_classes: int = 10, image_size: int = 32, channels: int = 3) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"No CIFAR ResNet of depth {depth}: it is 6n + 2, such as 20, 32, 44, 56 or 110.")
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        count = (depth - 2) // 6
        self.layer1 = _stage(BasicBlock, 16, 16, count)
        self.layer2 = _stage(BasicBlock, 16, 32, count, stride=2, shortcut=PaddedShortcut())
        self.layer3 = _stage(BasicBlock, 32, 64, count, stride=2, shortcut=PaddedShortcut())
        self.fc = nn.Linear(64, num_classes)
        kaiming_(self)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)  # (B, 16, S, S)
        x = self.layer3(self.layer2(self.layer1(x)))  # (B, 64, S/4, S/4)
        return self.fc(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left): (B, narrow, H, W) -> (B, wide, H/stride, W/stride).

    `shortcut` replaces the default: the identity, or a 1x1 convolution where the shape changes (option B).
    """

    expansion = 1

    def __init__(self, narrow: int, wide: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(narrow, wide, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = Conv2d(wide, wide, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.downsample = shortcut or _projection(narrow, wide, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x), inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut (figure 5, right): (B, narrow, H, W) -> (B, 4 width, H/stride, W/stride).

    The stride is the 3x3's, as in torchvision; the paper's is the first 1x1's.
    """

    expansion = 4

    def __init__(self, narrow: int, width: int, stride: int = 1) -> None:
        super().__init__()
        wide = width * self.expansion
        self.conv1 = Conv2d(narrow, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = Conv2d(width, wide, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(wide)
        self.downsample = _projection(narrow, wide, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.downsample(x), inplace=True)


class PaddedShortcut(nn.Module):
    """Option A of section 3.3 where the width doubles: (B, C, H, W) -> (B, 2C, H/2, W/2), no parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


def _stage(block: type[BasicBlock | Bottleneck], narrow: int, width: int, count: int, **first: Any) -> nn.Sequential:
    """`count` blocks; the options in `first` are the first one's, the rest keep the size."""
    rest = [block(width * block.expansion, width) for _ in range(count - 1)]
    return nn.Sequential(block(narrow, width, **first), *rest)


def _projection(narrow: int, wide: int, stride: int) -> nn.Module:
    if narrow == wide and stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(narrow, wide, 1, stride, bias=False), nn.BatchNorm2d(wide))
