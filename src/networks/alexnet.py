"""AlexNet: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", section 5."""

import torch
from torch import Tensor, nn

from src.networks.parts import convolution, kaiming_, require_image_size


class AlexNet(nn.Module):
    """Five convolutions, three overlapping max pools, three fully connected layers on the last map as it is.

    images (B, channels, S, S) -> logits (B, num_classes). The last map is 6x6 at 224 px (then this is torchvision's
    network) and 2x2 at 96. Under 64 px the first convolution is 5x5 without stride, and the last map is 3x3 at
    32 px. As in torchvision, there is no local response normalisation, and the fourth convolution has 256 filters
    (384 in the paper's footnote 1).

    Initialisation: Kaiming normal (He et al. 2015, section 2.2), fan out for the convolutions, fan in for the
    linear layers; zero biases.

    Raises ValueError for an image under 15 px.
    """

    torchvision_name = "alexnet"

    def __init__(self, num_classes: int = 1000, image_size: int = 224, dropout: float = 0.5, channels: int = 3) -> None:
        super().__init__()
        require_image_size("AlexNet", image_size, minimum=15)
        small = image_size < 64
        side = image_size if small else (image_size - 7) // 4 + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        # The first linear layer follows the image size; published weights have it for a 6x6 map.
        self.head = ("classifier.6",) if side == 6 else ("classifier.1", "classifier.6")
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 5, padding=2) if small else nn.Conv2d(channels, 64, 11, stride=4, padding=2),
            nn.MaxPool2d(3, stride=2),
            nn.ReLU(inplace=True),
            *convolution(64, 192, 5, pool=3),
            *convolution(192, 384, 3),
            *convolution(384, 256, 3),
            *convolution(256, 256, 3, pool=3),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256 * side**2, 4096),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(4096, 4096),
            nn.ReLU(inplace=True),
            nn.Linear(4096, num_classes),
        )
        kaiming_(self, linear=True)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)  # (B, 256, 6, 6) at 224 px
        return self.classifier(torch.flatten(maps, 1))
