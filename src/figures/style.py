"""The one palette and the one style of all figures, and what a figure is."""

import io
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import PIL.Image
from matplotlib import rc_context, rc_params_from_file
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

# Okabe and Ito (2008): colour-blind eyes tell them apart. Blue is training or right, vermilion validation or wrong.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, PALE, BLACK, GREY = "#E69F00", "#56B4E9", "#BBDFF6", "#222222", "#B8B8B8"
COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
STYLE = rc_params_from_file(Path(__file__).with_name("house.mplstyle"), use_default_template=False)


def house_style() -> Any:
    """Within it, or in a function that it decorates, matplotlib draws in the house style."""
    return rc_context(STYLE)


class Figure(matplotlib.figure.Figure):
    """A figure that lays itself out, is drawn once, and shows itself as the last value of a notebook's cell."""

    def __init__(self, width: float, height: float, title: str = "") -> None:
        """``width`` and ``height`` in inches."""
        super().__init__(figsize=(width, height))
        self.suptitle(title)

    @cached_property
    def png(self) -> bytes:
        """The picture as a PNG file."""
        buffer = io.BytesIO()
        with rc_context(STYLE):
            self.savefig(buffer, format="png")
        return buffer.getvalue()

    def _repr_png_(self) -> bytes:
        return self.png


def save(figure: Figure, path: Path) -> Path:
    """Writes the figure as PNG, making the folder, and gives the path back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(figure.png)
    return path


def save_for_paper(figure: Figure, path: Path) -> list[Path]:
    """Writes the figure, its titles taken off, as PNG, PDF and SVG beside each other; gives the paths.

    ``path`` has no ending.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.suptitle("")
    for axes in figure.axes:
        for place in ("left", "center"):
            axes.set_title("", loc=place)
    paths = [path.with_name(f"{path.name}.{ending}") for ending in ("png", "pdf", "svg")]
    with rc_context(STYLE):
        for each, date in zip(paths, ("Creation Time", "CreationDate", "Date"), strict=True):
            figure.savefig(each, metadata={date: None})  # the same figure is the same file
    return paths


def save_pixels(image: NDArray[np.uint8], path: Path) -> Path:
    """Writes uint8 (H, W, 3) as PNG, pixel by pixel, making the folder, and gives the path back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(image).save(path)
    return path


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """The figure as uint8 (H, W, 3): TensorBoard's ``add_image(..., dataformats="HWC")`` takes it."""
    return np.array(PIL.Image.open(io.BytesIO(figure.png)).convert("RGB"))


def compact(png: bytes) -> tuple[bytes, int]:
    """A PNG file as WebP, for a page, and its width in pixels: exact, but for what is much smaller otherwise."""
    image, found = PIL.Image.open(io.BytesIO(png)).convert("RGB"), []
    for options in ({"lossless": True}, {"quality": 85}):
        image.save(buffer := io.BytesIO(), "WEBP", **options)
        found.append(buffer.getvalue())
    exact, lossy = found
    return (lossy if 2 * len(lossy) < len(exact) else exact), image.width


def percent(share: float, digits: int = 1) -> str:
    """A share as people read it, "12.3 %"; nearly is not quite: ">99.9 %" and "<0.1 %"."""
    text, nothing, everything = (f"{100 * each:.{digits}f} %" for each in (share, 0, 1))
    if 0 < share < 1 and text in (nothing, everything):
        return f"<{10**-digits} %" if text == nothing else f">{100 - 10**-digits} %"
    return text


def percent_ticks() -> FuncFormatter:
    """The same for the numbers on an axis, with the digits that they need."""
    return FuncFormatter(lambda share, _: f"{round(100 * share, 6) + 0:g} %")  # + 0: no -0


def short(name: str, length: int) -> str:
    """At most ``length`` characters: the middle goes, because names tend to differ at their ends."""
    keep = length - 1
    return name if len(name) <= length else f"{name[: keep - keep // 2]}…{name[len(name) - keep // 2 :]}"
