"""TinyVGG: the network of CNN Explainer (Wang et al. 2020, https://poloclub.github.io/cnn-explainer)."""

import torch
from torch import Tensor, nn

from src.networks.parts import convolution, kaiming_, require_image_size


class TinyVGG(nn.Module):
    """Two blocks of convolution, ReLU, convolution, ReLU and max pool, then one linear layer.

    images (B, channels, S, S) -> logits (B, num_classes). `hidden_units` is the width of all four convolutions. They
    are 3x3 and not padded, as in CNN Explainer, so the last map is 13x13 at its 64 px and 5x5 at 32.

    Initialisation: Kaiming normal, fan out, for the convolutions (He et al. 2015, section 2.2), PyTorch's own
    for the linear layer.

    Raises ValueError for an image under 16 px.
    """

    head = ("classifier",)

    def __init__(
        self, hidden_units: int = 10, num_classes: int = 1000, image_size: int = 64, channels: int = 3
    ) -> None:
        super().__init__()
        require_image_size("TinyVGG", image_size, minimum=16)
        self.features = nn.Sequential(
            *convolution(channels, hidden_units, 3, padding="valid"),
            *convolution(hidden_units, hidden_units, 3, padding="valid", pool=2),
            *convolution(hidden_units, hidden_units, 3, padding="valid"),
            *convolution(hidden_units, hidden_units, 3, padding="valid", pool=2),
        )
        side = ((image_size - 4) // 2 - 4) // 2
        self.classifier = nn.Linear(hidden_units * side**2, num_classes)
        kaiming_(self)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.features(images)  # (B, hidden_units, S/4 - 3, S/4 - 3)
        return self.classifier(torch.flatten(maps, 1))
