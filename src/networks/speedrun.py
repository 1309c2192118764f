"""The network of the CIFAR-10 speed records: airbench (Jordan 2024, https://arxiv.org/abs/2404.00498, section 3)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.networks.parts import require_image_size


class SpeedrunNet(nn.Module):
    """A 2x2 convolution made to whiten, three groups of two 3x3 convolutions, one linear layer.

    images (B, channels, S, S) -> logits (B, num_classes), for any S from 9; the last map is 3x3 at 32 px, and its
    maximum is what the linear layer sees. `widths` are the channels of the three groups. Batch norms learn no scale
    and take the last batches' statistics (momentum 0.4), so that they keep up with a training of a few epochs.

    `dirac` starts the first filters of each 3x3 convolution as the identity of its inputs (section 3.3; Zagoruyko and
    Komodakis 2017). `logit_scale` multiplies the logits (Page 2018, "How to train your ResNet").

    Initialisation otherwise: PyTorch's own. `whiten` gives the first layer its filters; until then it is an ordinary
    convolution.

    Raises ValueError for an image under 9 px or a number of widths other than three.
    """

    head = ("classifier",)

    def __init__(
        self,
        widths: Sequence[int] = (64, 256, 256),
        dirac: bool = True,
        logit_scale: float = 1 / 9,
        num_classes: int = 10,
        image_size: int = 32,
        channels: int = 3,
    ) -> None:
        super().__init__()
        require_image_size("SpeedrunNet", image_size, minimum=9)
        if len(widths) != 3:
            raise ValueError(f"model.network.widths={list(widths)} must be three, one for each group of convolutions.")
        self.logit_scale = logit_scale
        self.whitening = nn.Conv2d(channels, 8 * channels, 2)  # a filter and its negative for each value of a patch
        self.groups = nn.Sequential(*map(_group, (8 * channels, *widths), widths))
        self.classifier = nn.Linear(widths[-1], num_classes, bias=False)
        for module in self.groups.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.requires_grad_(False)
            elif dirac and isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight.data[: module.in_channels])

    def forward(self, images: Tensor) -> Tensor:
        x = F.gelu(self.whitening(images))  # (B, 8 channels, S - 1, S - 1)
        x = F.adaptive_max_pool2d(self.groups(x), 1)  # (B, C, 1, 1)
        return self.classifier(torch.flatten(x, 1)) * self.logit_scale

    @property
    def whitens(self) -> bool:
        """Whether `whiten` has made the first layer, here or in the training of the weights that were loaded."""
        filters, negatives = self.whitening.weight.chunk(2)
        return torch.equal(filters, -negatives)

    @torch.no_grad()
    def whiten(self, images: Tensor, epsilon: float = 5e-4) -> None:
        """Makes the first layer whiten the 2x2 patches of images (N, C, S, S), and freezes it.

        Its filters become the eigenvectors of the patches' covariance (4 C, 4 C), each divided by the root of its
        eigenvalue plus `epsilon`, and the negatives of these (section 3.2; Page 2018); its bias becomes 0.
        """
        patches = F.unfold(images, 2).transpose(0, 1).flatten(1)  # (4 C, N (S - 1)^2)
        variances, directions = torch.linalg.eigh(patches @ patches.T / patches.shape[1])
        filters = (directions / (variances + epsilon).sqrt()).T.unflatten(1, (-1, 2, 2))
        self.whitening.weight.copy_(torch.cat([filters, -filters]))
        self.whitening.bias.zero_()  # type: ignore[union-attr]
        self.whitening.requires_grad_(False)


def _group(narrow: int, wide: int) -> nn.Sequential:
    """Two convolutions and a max pool between them: (B, narrow, H, W) -> (B, wide, H/2, W/2)."""
    return nn.Sequential(
        nn.Conv2d(narrow, wide, 3, padding=1, bias=False),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(wide, momentum=0.4),
        nn.GELU(),
        nn.Conv2d(wide, wide, 3, padding=1, bias=False),
        nn.BatchNorm2d(wide, momentum=0.4),
        nn.GELU(),
    )
