"""Grids of images: uint8 (N, 3, H, W) or (N, 1, H, W), labels int (N,), probabilities float (N, K), rows sum to 1."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from src.figures.style import BLACK, BLUE, GREY, VERMILION, Figure, house_style, percent, short

Images = Sequence[NDArray[np.uint8]] | NDArray[np.uint8]
Names = Sequence[str]


def _grid(images: Images, captions: Names, frames: Names, most: int, width: float, height: float, title: str) -> Figure:
    """Images, each in a frame of its colour and ``width`` by ``height`` inches of room.

    At most ``most`` are in a row, fewer where these leave fewer holes in the last. All are drawn into one
    pair of axes, whose unit is an inch: a pair for each would take many times as long.
    """
    some = range(max(1, min(most, len(images))), most // 2, -1)
    columns = min(some, key=lambda each: -len(images) % each, default=max(1, len(images)))
    rows = max(1, -(-len(images) // columns))
    lines = title.split("\n")
    room = max(columns * width, 4.2, 0.1 * max(map(len, lines)) + 0.2)  # inches, a letter of the title has 0.1
    top = 0.15 + 0.2 * len(lines)
    figure = Figure(room, top + rows * height)
    figure.set_layout_engine("none")
    figure.suptitle(title, y=1 - 0.07 / (top + rows * height))
    axes = figure.add_axes((0, 0, 1, 1))
    for number, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, columns)
        text = 0.13 * (caption.count("\n") + 1) if caption else 0
        high, wide = image.shape[1:]
        scale = min((width - 0.12) / wide, (height - text - 0.12) / high)  # inches a pixel
        left, upper = (room - columns * width + (2 * column + 1) * width - wide * scale) / 2, top + row * height
        right, lower = left + wide * scale, upper + high * scale
        shown = np.broadcast_to(image, (3, high, wide)).transpose(1, 2, 0)
        axes.imshow(shown, extent=(left, right, lower, upper))
        frame: Any = {"edgecolor": frames[number], "linewidth": 0.6 if frames[number] == GREY else 1.6}
        axes.add_patch(Rectangle((left, upper), wide * scale, high * scale, fill=False, **frame))
        axes.text((left + right) / 2, lower + 0.05, caption, fontsize=7, color=BLACK, ha="center", va="top")
    axes.set(xlim=(0, room), ylim=(top + rows * height, 0))
    axes.set_axis_off()
    if not len(images):
        figure.text(0.5, 0.4, "no such images", ha="center", color="#666666")
    return figure


@house_style()
def examples(images: Images, labels: ArrayLike, probabilities: ArrayLike, classes: Names, title: str = "") -> Figure:
    """A grid of images of one shape with their predicted and true classes and the probability given to each.

    The frame is blue where the prediction is right and vermilion where it is wrong.
    """
    captions, frames = [], []
    for label, row in zip(np.asarray(labels), np.asarray(probabilities), strict=True):
        said = int(row.argmax())
        first, second = (f"{short(classes[k], 22)} ({percent(row[k])})" for k in (said, label))
        captions.append(f"predicted: {first}\ntrue: {second}")
        frames.append(BLUE if said == label else VERMILION)
    longest = max((len(line) for caption in captions for line in caption.split("\n")), default=0)
    ratio = images[0].shape[2] / images[0].shape[1] if len(images) else 1.0
    width = max(1.5, 1.1 * ratio, 0.056 * longest + 0.15)  # inches, the text at 7 points
    return _grid(images, captions, frames, min(6, int(10.5 / width)), width, width / ratio + 0.35, title)


def heat_maps(images: NDArray[np.uint8], heat: Sequence[NDArray], *others: Any) -> Figure:
    """``examples``, each image followed by itself, pale, under maps: each of ``heat`` is (N, H, W), from 0 to 1."""
    pale = 127 + images.mean(axis=1, keepdims=True) / 2
    colour, line = 255 * np.reshape(to_rgb(VERMILION), (3, 1, 1)), np.full((len(images), 3, images.shape[2], 1), 255)
    panels = [np.broadcast_to(images, (len(images), 3, *images.shape[2:]))]
    for maps in heat:
        share = 0.8 * maps[:, None]  # what is hottest still shows the image
        panels += [line, (pale * (1 - share) + colour * share).round()]
    return examples(np.concatenate(panels, axis=3).astype(np.uint8), *others)


@house_style()
def filters(weights: NDArray, title: str = "") -> Figure:
    """The first 64 filters of a layer that sees images, ``weights`` (N, 3, H, W) or (N, 1, H, W); zero is grey."""
    few = weights[:64]
    shown = 127.5 * (1 + few / np.abs(few).max(axis=(1, 2, 3), keepdims=True).clip(1e-12))
    size = f"{few.shape[2]} x {few.shape[3]} px"
    caption = f"{len(few)} of {len(weights)} filters, {size}, each scaled by itself; grey is 0"
    return _grid([_mosaic(shown.round().astype(np.uint8), 8)], [caption], [GREY], 1, 4.6, 4.6, title)


@house_style()
def feature_maps(images: NDArray[np.uint8], layers: Mapping[str, NDArray], title: str = "") -> Figure:
    """A row for each of a few images: itself, and the first 16 maps that layers, (N, C, H, W) by name, make of it."""
    cells, captions = [], []
    for number, image in enumerate(images):
        cells.append(image)
        captions.append("the image")
        for name, every in layers.items():
            maps = every[number, :16, None]  # (16, 1, H, W)
            maps = maps - maps.min(axis=(2, 3), keepdims=True)
            shown = 255 * maps / maps.max(axis=(2, 3), keepdims=True).clip(1e-12)  # each map on a scale of its own
            cells.append(_mosaic(shown.round().astype(np.uint8), 4))
            size = f"{len(maps)} of {every.shape[1]} maps, {every.shape[2]} x {every.shape[3]}"
            captions.append(f"{short(name, 28)}\n{size}")
    return _grid(cells, captions, [GREY] * len(cells), 1 + len(layers), 1.9, 2.25, title)


def _mosaic(tiles: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Tiles (N, C, H, W), so many in a row, with white lines between them and white where one is missing."""
    scale = -(-32 // tiles.shape[2])  # so that the lines are thin
    tiles = np.pad(
        tiles.repeat(scale, 2).repeat(scale, 3),
        ((0, -len(tiles) % columns), (0, 0), (0, 1), (0, 1)),
        constant_values=255,
    )
    return tiled(tiles.reshape(-1, columns, *tiles.shape[1:]))[:-1, :-1].transpose(2, 0, 1)


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
