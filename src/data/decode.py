"""From an image, in a file or in Pillow, to a square of uint8."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises of a broken file
Box = Callable[[int, int], Sequence[float]]  # an image's height and width -> top, left, height and width to cut


def open_image(path: str | Path) -> Image.Image:
    """The image in a file. Anything else, such as a pipe, that it would wait for, is an error."""
    if not os.path.isfile(path):
        raise FileNotFoundError("there is no file of that name")
    return Image.open(path)


def decode(path: str | Path, side: int, channels: int = 3) -> np.ndarray:
    """Read an image file as `square` makes it. Of an animation the first frame counts."""
    with open_image(path) as image:
        return square(image, side, channels)


def square(image: Image.Image, side: int, channels: int, box: Box | None = None) -> np.ndarray:
    """An image as uint8 RGB, or grey with one channel, (channels, side, side): upright, resized bilinear, antialiased.

    Transparent pixels show white, and 16-bit grey keeps its upper 8 bits.

    Args:
        box: None is the largest square in the centre.
    """
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    width, height = image.size[::-1] if orientation > 4 else image.size
    top, left, tall, wide = (box or _centre)(height, width)
    # a JPEG may be decoded smaller, which is quicker, but its box to no less than twice the side
    shrink = max(int(min(tall, wide) / (2 * side)), 1)
    image.draft("L" if channels == 1 else None, (-(-image.width // shrink), -(-image.height // shrink)))
    image = _plain(ImageOps.exif_transpose(image) if orientation > 1 else image, "RGB" if channels == 3 else "L")
    x, y = image.width / width, image.height / height
    edges = (left * x, top * y, min((left + wide) * x, image.width), min((top + tall) * y, image.height))
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR, edges))
    return pixels.reshape(side, side, channels).transpose(2, 0, 1)


def _centre(height: int, width: int) -> Sequence[float]:
    side = min(height, width)
    return (height - side) / 2, (width - side) / 2, side, side


def _plain(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        image = Image.fromarray((grey // 256 if grey.max() > 255 else grey).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)
