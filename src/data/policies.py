"""Batched transforms that give each image operations of its own, with magnitudes of its own.

They draw and do what torchvision's transforms of the same names do, on uint8 images (B, C, H, W).
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torchvision import transforms
from torchvision.transforms.v2 import functional as TF

from src.data.colour import brightness, contrast, hue, posterize, saturation, sharpness, solarize
from src.data.draw import Batch, Draw, Transform
from src.data.geometry import affine

# Each takes images (n, C, H, W) and a magnitude for each (n,).
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Brightness": lambda images, m: brightness(images, 1 + m),
    "Color": lambda images, m: saturation(images, 1 + m),
    "Contrast": lambda images, m: contrast(images, 1 + m),
    "Sharpness": lambda images, m: sharpness(images, 1 + m),
    "Posterize": posterize,
    "Solarize": lambda images, m: solarize(images, 255 * m),
    "AutoContrast": lambda images, m: TF.autocontrast(images),
    "Equalize": lambda images, m: TF.equalize(images),
    "Invert": lambda images, m: TF.invert(images),
    "Grayscale": lambda images, m: TF.rgb_to_grayscale(images, images.shape[1]),
    "Hue": hue,
}
Pair = tuple[float, float]
MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
NAMES = ("Identity", *MOVES, *OPERATIONS)
FREE = NAMES.index("Invert")  # the operations before it are those that the policies choose from freely


def move(images: Tensor, chosen: Tensor, m: Tensor, mode: str) -> Tensor:
    """Those of `MOVES`, by their positions in `NAMES` (n,) and a magnitude for each."""
    height, width = images.shape[-2:]
    shear_x, shear_y, right, down, angle = (m * (chosen == NAMES.index(name)) for name in MOVES)
    shear = torch.stack([shear_x, shear_y], 1)
    edges = torch.tensor([height / 2, width / 2], device=images.device)  # a shear keeps the upper or the left one
    translate = torch.stack([right, down], 1).trunc() - shear * edges
    return affine(images, -angle, translate, torch.ones_like(m), shear, mode)


def apply_chosen(images: Tensor, chosen: Tensor, magnitudes: Tensor, mode: str = "nearest") -> Tensor:
    """Each image after the operation chosen for it: one call for all images of an operation.

    Args:
        chosen, magnitudes: positions in `NAMES` (B,), and numbers (B,), both on the CPU: see `Draw.on_cpu`.
        mode: how `MOVES` interpolate.
    """
    order = chosen.argsort(stable=True)
    unmoved, *counts = chosen.bincount(minlength=len(NAMES)).tolist()
    sizes = [unmoved, sum(counts[: len(MOVES)]), *counts[len(MOVES) :]]
    kept, moved, *parts = images.index_select(0, order.to(images.device)).split(sizes)
    _, distance, *strengths = magnitudes[order].to(images.device).split(sizes)
    if len(moved):
        moved = move(moved, chosen[order].split(sizes)[1].to(images.device), distance, mode)
    for i, operation in enumerate(OPERATIONS.values()):
        parts[i] = operation(parts[i], strengths[i]) if len(parts[i]) else parts[i]
    return torch.cat([kept, moved, *parts]).index_select(0, order.argsort().to(images.device))


@cache
def levels(bins: int, shear: float, right: float, down: float, turn: float, enhance: float, bits: Pair) -> Tensor:
    """The magnitudes of each operation from weakest to strongest, (operations, bins), in the order of `NAMES`."""
    ends: list[Pair] = [(0, most) for most in (0, shear, shear, right, down, turn, *[enhance] * 4)]
    ends += [bits, (1, 0)]  # of Posterize and Solarize; the rest have none
    ends += [(0, 0)] * (len(NAMES) - len(ends))
    return torch.stack([torch.linspace(first, last, bins) for first, last in ends])


def usual_levels(images: Tensor, bins: int) -> Tensor:
    height, width = images.shape[-2:]
    return levels(bins, 0.3, 150 / 331 * width, 150 / 331 * height, 30, 0.9, (8, 4))


def operate(images: Tensor, chosen: Tensor, magnitudes: Tensor, here: Draw, mode: str = "nearest") -> Tensor:
    """`apply_chosen`, with half of the magnitudes that may be negative made so."""
    may_be = (chosen > 0) & (chosen <= NAMES.index("Sharpness"))
    negative = may_be & (here.integers(2) == 0)
    return apply_chosen(images, chosen, torch.where(negative, -magnitudes, magnitudes), mode)


class RandomOperation(Transform):
    """One operation, by its name in `NAMES`, with probability `p`.

    Args:
        magnitude: of Brightness, Color, Contrast and Sharpness the change of the factor, which is 1 + magnitude; of
            Posterize the bits kept; of Solarize the threshold, 0..1; of Hue a share of the circle; of Rotate degrees,
            counterclockwise; of Translate pixels; of Shear pixels a pixel.
    """

    def __init__(self, operation: str, magnitude: float = 0.0, p: float = 0.5) -> None:
        super().__init__()
        if operation not in NAMES:
            raise ValueError(f"RandomOperation: {operation!r} is unknown; choose one of {', '.join(NAMES)}.")
        self.number, self.magnitude, self.p = NAMES.index(operation), magnitude, p

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        chosen = torch.where(draw.on_cpu().uniform() < self.p, self.number, 0)
        return apply_chosen(images, chosen, torch.full(chosen.shape, self.magnitude)), labels


class ColorJitter(Transform):
    """Changes brightness, contrast, saturation and hue, in an order of its own for each image.

    Args:
        brightness, contrast, saturation: the factor is uniform in 1 - x .. 1 + x, from 0 on where x is above 1.
        hue: the turn is uniform in -x .. x, at most 0.5, half the circle.
    """

    def __init__(self, brightness: float = 0, contrast: float = 0, saturation: float = 0, hue: float = 0) -> None:
        super().__init__()
        self.most = {"Brightness": brightness, "Contrast": contrast, "Color": saturation, "Hue": hue}

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        here, most = draw.on_cpu(), {name: value for name, value in self.most.items() if value}
        numbers, limits = torch.tensor([NAMES.index(name) for name in most]), torch.tensor(list(most.values()))
        lowest = -limits.clamp(max=1)  # of the change; -1 is a factor of 0
        changes = lowest + (limits - lowest) * here.uniform(len(most))
        for step in here.uniform(len(most)).argsort(1).T:
            images = apply_chosen(images, numbers[step], changes.gather(1, step[:, None]).flatten())
        return images, labels


class TrivialAugmentWide(Transform):
    """One operation at one of 31 strengths, up to very strong ones (Müller and Hutter 2021, section 3)."""

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        here = draw.on_cpu()
        chosen = here.integers(FREE)
        magnitudes = levels(31, 0.99, 32, 32, 135, 0.99, (8, 2))[chosen, here.integers(31)]
        return operate(images, chosen, magnitudes, here), labels


class RandAugment(Transform):
    """`num_ops` operations one after another, all at one strength (Cubuk et al. 2020, section 3).

    Args:
        magnitude: the strength, 0 .. 30.
    """

    def __init__(self, num_ops: int = 2, magnitude: int = 9) -> None:
        super().__init__()
        self.num_ops, self.magnitude = num_ops, magnitude

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        here, magnitudes = draw.on_cpu(), usual_levels(images, 31)[:, self.magnitude]
        for _ in range(self.num_ops):
            chosen = here.integers(FREE)
            images = operate(images, chosen, magnitudes[chosen], here)
        return images, labels


class AutoAugment(Transform):
    """One of 25 pairs of operations, each with its probability and strength (Cubuk et al. 2019, tables 7 to 9).

    Args:
        policy: "imagenet", "cifar10" or "svhn": what the pairs were searched on.
    """

    def __init__(self, policy: str = "imagenet") -> None:
        super().__init__()
        pairs = transforms.AutoAugment(transforms.AutoAugmentPolicy(policy)).policies
        # of both steps of a pair: operation, probability, strength of 0 to 9
        self.pairs = torch.tensor([[(NAMES.index(name), p, level or 0) for name, p, level in pair] for pair in pairs])

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        here, magnitudes = draw.on_cpu(), usual_levels(images, 10)
        for chosen, probability, level in self.pairs[here.integers(len(self.pairs))].permute(1, 2, 0):
            taken = torch.where(here.uniform() < probability, chosen.long(), 0)
            images = operate(images, taken, magnitudes[taken, level.long()], here)
        return images, labels


class AugMix(Transform):
    """Each image mixed with chains of one to three operations on it (Hendrycks et al. 2020, algorithm 1).

    The mixing weights are uniform: Dirichlet(1) and Beta(1, 1). Geometric operations interpolate. The paper's second
    loss, which compares several draws of one image, is not in here.

    Args:
        severity: how many of ten strengths there are to draw from, from none on.
        mixture_width: how many chains.
    """

    def __init__(self, severity: int = 3, mixture_width: int = 3) -> None:
        super().__init__()
        self.severity, self.mixture_width = severity, mixture_width

    def forward(self, images: Tensor, labels: Tensor, draw: Draw) -> Batch:
        height, width = images.shape[-2:]
        here, magnitudes = draw.on_cpu(), levels(10, 0.3, width / 3, height / 3, 30, 0.9, (4, 0))
        mixed = here.uniform()[:, None]
        shares = -(1 - here.uniform(self.mixture_width)).log()  # exponential: their proportions are Dirichlet(1)
        weights = torch.cat([1 - mixed, mixed * shares / shares.sum(1, keepdim=True)], 1).to(images.device)
        out = images * weights[:, 0].view(-1, 1, 1, 1)
        for weight in weights.T[1:]:
            chain, depth = images, 1 + here.integers(3)
            for step in range(3):
                chosen = torch.where(step < depth, 1 + here.integers(FREE - 1), 0)
                strength = magnitudes[chosen, here.integers(self.severity)]
                chain = operate(chain, chosen, strength, here, "bilinear")
            out += chain * weight.view(-1, 1, 1, 1)
        return out.round_().to(images.dtype), labels
