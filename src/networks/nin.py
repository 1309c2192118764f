"""NIN: Lin, Chen and Yan 2014, "Network in network", the CIFAR-10 network of section 4.2."""

from functools import partial

from torch import Tensor, nn

from src.networks.parts import convolution, kaiming_, require_image_size


class NIN(nn.Module):
    """Three MLPConv blocks (a convolution and two 1x1 convolutions), then the average of one map per class.

    images (B, channels, S, S) -> logits (B, num_classes). No fully connected layer; any size from 4 px on, the last
    map is 8x8 at 32 px. `batch_norm` follows every convolution but the last with one. `dropout` acts on the
    input of the second and third block. Unlike the paper's, the last 1x1 convolution has no ReLU: a class whose
    map is negative everywhere would get no gradient.

    Initialisation: Kaiming normal, fan out (He et al. 2015, section 2.2).

    Raises ValueError for an image under 4 px.
    """

    head = ("classifier",)

    def __init__(
        self,
        num_classes: int = 1000,
        image_size: int = 32,
        batch_norm: bool = False,
        dropout: float = 0.5,
        channels: int = 3,
    ) -> None:
        super().__init__()
        require_image_size("NIN", image_size, minimum=4)
        layer = partial(convolution, norm=batch_norm)
        self.features = nn.Sequential(
            *layer(channels, 192, 5),
            *layer(192, 160, 1),
            *layer(160, 96, 1),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            nn.Dropout(dropout),
            *layer(96, 192, 5),
            *layer(192, 192, 1),
            *layer(192, 192, 1),
            nn.AvgPool2d(3, stride=2, ceil_mode=True),
            nn.Dropout(dropout),
            *layer(192, 192, 3),
            *layer(192, 192, 1),
        )
        self.classifier = nn.Conv2d(192, num_classes, 1)
        kaiming_(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.classifier(self.features(images))  # (B, num_classes, S/4, S/4)
        return maps.mean((2, 3))
