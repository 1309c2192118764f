"""Distances between sets of images, in the features of a classifier.

Said once: features are float (N, D), one row an image. Distances in other features than Inception's are neither FID nor
comparable with it, nor with those in the features of another network.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

BLOCK = 1000  # rows of a matrix of distances at a time


@torch.no_grad()
def penultimate(network: nn.Module, batches: Iterable[Tensor]) -> Tensor:
    """What a classifier's last layer sees of batches of its images (B, C, S, S), maps averaged over their pixels."""
    seen: list[Tensor] = []
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    hooks = [layer.register_forward_pre_hook(lambda _, given: seen.__setitem__(slice(None), given)) for layer in layers]
    rows = []
    for images in batches:
        network(images)
        rows.append(seen[0].flatten(2).mean(dim=2) if seen[0].ndim > 2 else seen[0])
    for hook in hooks:
        hook.remove()
    return torch.cat(rows).float()


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared distance of two Gaussians of the features' means and covariances (Heusel et al. 2017, equation 6)."""
    first, second = first.double(), second.double()
    means = (first.mean(dim=0) - second.mean(dim=0)).square().sum()
    one, other = first.T.cov(), second.T.cov()
    # The trace of (one @ other)^(1/2), from a symmetric matrix with the same eigenvalues.
    values, vectors = torch.linalg.eigh(one)
    root = vectors * values.clamp(min=0).sqrt()
    common = torch.linalg.eigvalsh(root.T @ other @ root).clamp(min=0).sqrt().sum()
    return float(means + one.trace() + other.trace() - 2 * common)


def kernel_distance(first: Tensor, second: Tensor) -> float:
    """KID: the unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^3 (Binkowski et al. 2018)."""
    first, second = first.double(), second.double()

    def total(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([_kernel(rows @ b.T, a.shape[1]).sum() for rows in a.split(BLOCK)]).sum()

    def within(a: Tensor) -> Tensor:
        itself = _kernel(a.square().sum(dim=1), a.shape[1]).sum()
        return (total(a, a) - itself) / (len(a) * (len(a) - 1))

    return float(within(first) + within(second) - 2 * total(first, second) / (len(first) * len(second)))


def _kernel(products: Tensor, dimensions: int) -> Tensor:
    return (products / dimensions + 1) ** 3


def precision_and_recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> tuple[float, float]:
    """The shares of fakes among the reals, and of reals among the fakes (Kynkaanniemi et al. 2019, equation 2).

    A row is among a set if it is as near to one of its members as that member's k-th nearest neighbour is.
    """
    return _share_among(fake, real, neighbours), _share_among(real, fake, neighbours)


def _share_among(rows: Tensor, members: Tensor, neighbours: int) -> float:
    nearest = [torch.cdist(part, members).kthvalue(neighbours + 1, dim=1).values for part in members.split(BLOCK)]
    radii = torch.cat(nearest)  # the member itself is the first
    inside = [(torch.cdist(part, members) <= radii).any(dim=1) for part in rows.split(BLOCK)]
    return float(torch.cat(inside).float().mean())


def compare(features: Callable[[Tensor], Tensor], train: Tensor, samples: Tensor, real: Tensor) -> dict[str, float]:
    """Distances of samples to real images, and those of the training images to them as the floor.

    frechet_distance, kid, precision, recall, frechet_distance_floor and kid_floor.

    Args:
        features: maps images, uint8 (N, C, H, W), to features.
        train, samples, real: the three sets; a distance depends on their sizes.
    """
    trained, made, expected = (features(images) for images in (train, samples, real))
    precision, recall = precision_and_recall(expected, made)
    return {
        "frechet_distance": frechet_distance(made, expected),
        "kid": kernel_distance(made, expected),
        "precision": precision,
        "recall": recall,
        "frechet_distance_floor": frechet_distance(trained, expected),
        "kid_floor": kernel_distance(trained, expected),
    }
