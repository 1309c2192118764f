"""SN-GAN with a projection discriminator: the "standard CNN" of Miyato et al. 2018 (arXiv 1802.05957, table 3).

Images are float (B, C, S, S) in [-1, 1], noise float (B, noise_size) from N(0, 1), labels int64 (B,).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class ConditionalBatchNorm2d(nn.Module):
    """Batch norm with a scale and a shift for each class (de Vries et al. 2017, arXiv 1707.00683, section 3)."""

    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False)
        self.scale, self.shift = nn.Embedding(num_classes, width), nn.Embedding(num_classes, width)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, maps: Tensor, labels: Tensor) -> Tensor:
        maps = self.norm(maps)
        scale, shift = (table(labels)[:, :, None, None].to(maps.dtype) for table in (self.scale, self.shift))
        return torch.addcmul(shift, maps, scale)


class Upsampling(nn.Module):
    """4x4 transposed convolution of stride 2, conditional batch norm, ReLU: (B, C, S, S) -> (B, wide, 2 S, 2 S)."""

    def __init__(self, narrow: int, wide: int, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(narrow, wide, 4, stride=2, padding=1, bias=False)
        self.norm = ConditionalBatchNorm2d(num_classes, wide)

    def forward(self, maps: Tensor, labels: Tensor) -> Tensor:
        return torch.relu_(self.norm(self.conv(maps), labels))


class Generator(nn.Module):
    """noise, labels -> images."""

    def __init__(self, width: int, noise_size: int, num_classes: int, image_size: int, channels: int) -> None:
        super().__init__()
        self.noise_size = noise_size
        self.start = (8 * width, image_size // 8, image_size // 8)
        self.project = nn.Linear(noise_size, self.start[0] * self.start[1] ** 2)
        widths = (8 * width, 4 * width, 2 * width, width)
        self.blocks = nn.ModuleList(Upsampling(narrow, wide, num_classes) for narrow, wide in pairwise(widths))
        self.colour = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        maps = self.project(noise).unflatten(1, self.start)  # (B, 8 width, S/8, S/8)
        for block in self.blocks:
            maps = block(maps, labels)  # at last (B, width, S, S)
        return torch.tanh(self.colour(maps))


class Discriminator(nn.Module):
    """images, labels -> scores (B,), positive for real ones.

    The class enters as an inner product with the last map (Miyato and Koyama 2018, arXiv 1802.05637, equation 4); it is
    not pooled, as in the CNN of the earlier paper. Every weight is divided by its largest singular value.
    """

    def __init__(self, width: int, num_classes: int, image_size: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for narrow, wide in pairwise((channels, width, 2 * width, 4 * width)):
            layers += [nn.Conv2d(narrow, wide, 3, padding=1), nn.LeakyReLU(0.1, inplace=True)]
            layers += [nn.Conv2d(wide, wide, 4, stride=2, padding=1), nn.LeakyReLU(0.1, inplace=True)]
        layers += [nn.Conv2d(4 * width, 8 * width, 3, padding=1), nn.LeakyReLU(0.1, inplace=True)]
        self.features = nn.Sequential(*layers)
        size = 8 * width * (image_size // 8) ** 2
        self.score, self.projection = nn.Linear(size, 1), nn.Embedding(num_classes, size)
        nn.init.normal_(self.projection.weight, std=0.02)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        last = self.features(images).flatten(1)  # (B, 8 width * S/8 * S/8)
        return self.score(last).squeeze(1) + (self.projection(labels) * last).sum(dim=1)


class SNGAN(nn.Module):
    """The two networks, as `generator` and `discriminator`.

    `width` is that of the paper's narrowest layer, the others are its multiples. Initialisation: N(0, 0.02) (Radford
    et al. 2016, section 4).

    Raises ValueError for an image size that halving three times does not divide.
    """

    def __init__(
        self, width: int = 64, noise_size: int = 128, num_classes: int = 10, image_size: int = 32, channels: int = 3
    ) -> None:
        super().__init__()
        if image_size < 16 or image_size % 8:
            raise ValueError(
                f"image_size={image_size} does not fit SNGAN, which doubles a map three times: "
                "set data.image_size to a multiple of 8 from 16 on, such as 32, 64 or 96."
            )
        self.generator = Generator(width, noise_size, num_classes, image_size, channels)
        self.discriminator = Discriminator(width, num_classes, image_size, channels)
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        for layer in list(self.discriminator.modules()):
            if isinstance(layer, (nn.Conv2d, nn.Linear, nn.Embedding)):
                spectral_norm(layer)

    def forward(self, images: Tensor) -> Tensor:
        """Scores (2B,) of images and of as many samples, all of class 0: what the summary and the graph show."""
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        samples = self.generator(images.new_zeros(len(images), self.generator.noise_size), labels)
        return self.discriminator(torch.cat([images, samples]), labels.repeat(2))
