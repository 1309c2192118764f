"""Grids of images: uint8 (N, 3, H, W) or (N, 1, H, W), labels int (N,), probabilities float (N, K), rows sum to 1."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from src.figures.style import BLACK, BLUE, GREY, VERMILION, Figure, house_style, short

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
Names = Sequence[str]


def _grid(images: Images, captions: Names, frames: Names, most: int, width: float, height: float, title: str) -> Figure:
    """Images, at most ``most`` in a row, each in a frame of its colour and ``width`` by ``height`` inches of room."""
    columns = max(1, min(most, len(images)))
    rows = max(1, -(-len(images) // columns))
    figure = Figure(max(columns * width, 4.2), rows * height + 0.3, title)
    for number, image in enumerate(images):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0))
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=frames[number], linewidth=0.6 if frames[number] == GREY else 1.6)
        axes.set_xlabel(captions[number], fontsize=7, color=BLACK, labelpad=3)
    if not len(images):
        figure.text(0.5, 0.4, "no such images", ha="center", color="#666666")
    return figure


def _percent(share: float) -> str:
    text = f"{share:.1%}"
    return text if share in (0, 1) else {"100.0%": ">99.9%", "0.0%": "<0.1%"}.get(text, text)  # nearly is not quite


@house_style()
def examples(images: Images, labels: ArrayLike, probabilities: ArrayLike, classes: Names, title: str = "") -> Figure:
    """A grid of images with their predicted and true classes and the probability given to each.

    The frame is blue where the prediction is right and vermilion where it is wrong.
    """
    captions, frames = [], []
    for label, row in zip(np.asarray(labels), np.asarray(probabilities), strict=True):
        said = int(row.argmax())
        first, second = (f"{short(classes[k], 22)} ({_percent(row[k])})" for k in (said, label))
        captions.append(f"predicted: {first}\ntrue: {second}")
        frames.append(BLUE if said == label else VERMILION)
    longest = max((len(line) for caption in captions for line in caption.split("\n")), default=0)
    width = max(1.5, 0.056 * longest + 0.15)  # inches, at 7 points
    return _grid(images, captions, frames, min(6, int(10.5 / width)), width, width + 0.35, title)


@house_style()
def image_grid(images: Images, captions: Names = (), title: str = "") -> Figure:
    """A contact sheet: images uint8 (3, H, W), of one or of many sizes, each with its caption beneath."""
    texts = ["\n".join(short(line, 20) for line in caption.split("\n")) for caption in captions] or [""] * len(images)
    height = 1.25 + 0.14 * max((text.count("\n") + 1 for text in texts if text), default=0)
    return _grid(images, texts, [GREY] * len(images), 8, 1.25, height, title)


def tiled(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images (R, N, C, H, W) of one or three channels, as one of R rows without gaps: (R * H, N * W, 3)."""
    rows, columns, _, height, width = images.shape
    joined = images.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, -1)
    return np.broadcast_to(joined, (*joined.shape[:2], 3))


@house_style()
def sample_sheet(images: NDArray[np.uint8], classes: Names, title: str = "") -> Figure:
    """Samples of a generator, (K, N, C, H, W): a row for each of the K classes, with its name."""
    rows, columns, _, height, _ = images.shape
    figure = Figure(max(0.6 * columns + 1, 4.2), 0.6 * rows + 0.4, title)
    axes = figure.add_subplot()
    axes.imshow(tiled(images))
    axes.set_yticks([(row + 0.5) * height - 0.5 for row in range(rows)], [short(name, 16) for name in classes])
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure
