"""What may be wrong with the images of a data set and with their labels.

Said once: views are images at the size at which they are compared, uint8 (N, C, SIDE, SIDE), in the data set's order.
"""

import torch
from torch import Tensor
from torch.fft import irfft2, rfft2
from torch.nn.functional import avg_pool2d, normalize, pad

SIDE = 32  # pixels
SHIFT = 3  # pixels that one picture may lie from the other, each way
LEAST, ENOUGH = 0.5, 0.99  # correlation of two that are one picture: never below the one, always from the other on
CELL, STRIDE, CELLS = 6, 4, 6  # the means over squares that candidates are found by: pixels, pixels, how many a side
NEIGHBOURS, ALIKE = 10, 0.85  # candidates of an image, at most, and how alike they are, at least
BLOCK = 64  # rows of a matrix of similarities at a time


def label_issues(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The images whose label is probably wrong, the most probable first: positions, int64 (M,).

    Those that confident learning counts off the diagonal (Northcutt et al. 2021, section 3.1), by the probability of
    their label.

    Args:
        probabilities: float (N, K), of networks that were not trained on these images.
        labels: int64 (N,); some of the K classes may have no images.
    """
    from cleanlab.filter import find_label_issues

    if len(labels.unique()) < 2:
        return torch.empty(0, dtype=torch.int64)
    options = {"filter_by": "confident_learning", "return_indices_ranked_by": "self_confidence", "n_jobs": 1}
    return torch.from_numpy(find_label_issues(labels.numpy(), probabilities.numpy(), **options))


def near_duplicates(views: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs of images that show one picture: shifted by up to SHIFT pixels, mirrored, its colours or sharpness changed.

    They are outliers among the images and those most like them: photos of two things correlate little, digits of a few
    pixels much. By the modified z-score, which few duplicates do not change, above 3.5 (Iglewicz and Hoaglin 1993).

    Returns:
        Positions of the earlier and the later image, int64 (P, 2), and their `correlation`, (P,).
    """
    pairs = candidates(views)
    parts = [correlation(views[part[:, 0]], views[part[:, 1]]).cpu() for part in pairs.split(1000) if len(part)]
    found = torch.cat([torch.empty(0), *parts])
    best = torch.zeros(max(len(views), 1)).scatter_reduce(0, pairs.flatten(), found.repeat_interleave(2), "amax")
    least = (best.median() + 3.5 / 0.6745 * (best - best.median()).abs().median()).clamp(LEAST, ENOUGH)
    return pairs[found >= least], found[found >= least]


def candidates(views: Tensor) -> Tensor:
    """For each image the later ones that look most like it from afar, int64 (P, 2)."""

    def described(images: Tensor, shifts: list[tuple[int, int]]) -> Tensor:
        """(shifts, B, C * CELLS^2), of length 1."""
        means, reach = avg_pool2d(images.float(), CELL, 1), STRIDE * (CELLS - 1) + 1
        cells = [means[..., y : y + reach : STRIDE, x : x + reach : STRIDE].flatten(1) for y, x in shifts]
        rows = torch.stack(cells)
        return normalize(rows - rows.mean(dim=2, keepdim=True), dim=2)

    every = [(y, x) for y in (0, SHIFT, 2 * SHIFT) for x in (0, SHIFT, 2 * SHIFT)]  # so to within a pixel
    centres = torch.cat([described(part, [(SHIFT, SHIFT)])[0] for part in views.split(1000)])  # (N, C * CELLS^2)
    found = [torch.empty(0, 2, dtype=torch.int64)]
    for start in range(0, len(views), BLOCK):
        rows = views[start : start + BLOCK]
        moved = torch.cat([described(rows, every), described(rows.flip(-1), every)])
        alike = torch.cat([(moved @ part.T).amax(dim=0) for part in centres[start:].split(2000)], dim=1)
        alike = alike.triu(1)  # (B, N - start), of the later ones
        best = alike.topk(min(NEIGHBOURS, alike.shape[1]))
        row, rank = (best.values >= ALIKE).nonzero(as_tuple=True)
        found.append(start + torch.stack([row, best.indices[row, rank]], dim=1).cpu())
    return torch.cat(found)


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """The highest normalised correlation of two views' fine detail over shifts and mirroring: (P,), -1 to 1.

    Of the centre of the first with as large a part of the second. Fine detail is what differs from the mean of 3 x 3
    pixels: by all else, one ship under the sky is as another.
    """
    views = torch.stack([first, second, second.flip(-1)]).float()
    means = avg_pool2d(views.flatten(0, 1), 3, 1).unflatten(0, views.shape[:2])
    detail = views[..., 1:-1, 1:-1] - means  # (3, P, C, SIDE - 2, SIDE - 2)
    centre, others = detail[0, ..., SHIFT:-SHIFT, SHIFT:-SHIFT], detail[1:]
    size, reach = centre.shape[-1], 2 * SHIFT
    kernel = rfft2(pad(centre, (0, reach, 0, reach))).conj()
    products = irfft2((rfft2(others) * kernel).sum(dim=2))[..., : reach + 1, : reach + 1]  # (2, P, shifts, shifts)
    energy = avg_pool2d(others.square().sum(dim=2), size, 1) * size**2
    energy = energy * centre.square().sum(dim=(1, 2, 3)).view(-1, 1, 1)
    return (products / energy.clamp(min=1).sqrt()).amax(dim=(0, 2, 3))
