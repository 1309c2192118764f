"""From an image, in a file or in Pillow, to a square of uint8."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional as TF

# what `decode` raises of a file that cannot be read, or Pillow where a Dataset opens it
UNREADABLE = (OSError, ValueError, Image.DecompressionBombError)
UPRIGHT = {  # by EXIF's orientation; ImageOps.exif_transpose writes the EXIF anew, and fails where it is damaged
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# an image's height and width -> top, left, height and width to cut
Box = Callable[[int, int], tuple[int, int, int, int]]


@contextmanager
def _reading() -> Iterator[None]:
    """Makes one kind of error of what Pillow's many readers raise of a broken file, which can be nearly anything."""
    try:
        yield
    except (*UNREADABLE, MemoryError):
        raise
    except Exception as error:
        raise ValueError(str(error) or type(error).__name__) from error


@_reading()
def open_image(source: str | Path | BytesIO) -> Image.Image:
    """The image in a file, or in its bytes. Anything else, such as a pipe, that it would wait for, is an error."""
    if not isinstance(source, BytesIO) and not os.path.isfile(source):
        raise FileNotFoundError("there is no file of that name")
    return Image.open(source)


def decode(source: str | Path | BytesIO, side: int, channels: int = 3) -> np.ndarray:
    """Read an image file, or its bytes, as `square` makes it. Of an animation the first frame counts.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    with open_image(source) as image:
        return square(image, side, channels)


def printable(name: str | Path) -> str:
    """The name of a file as text that can be printed and written, whatever its bytes are."""
    return os.fsencode(name).decode(errors="backslashreplace")


@_reading()
def square(image: Image.Image, side: int, channels: int, box: Box | None = None) -> np.ndarray:
    """An image as uint8 RGB, or grey with one channel, (channels, side, side): upright, resized bilinear, antialiased.

    Transparent pixels show white. Grey of more than 8 bits keeps the upper 8 of the 8, 12 or 16 that it needs; floats
    are of 0..1.

    Args:
        box: None is the largest square in the centre.

    Raises:
        OSError, ValueError: it is broken, or has grey values of another range.
    """
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    width, height = image.size[::-1] if orientation in (5, 6, 7, 8) else image.size
    top, left, tall, wide = (box or _centre)(height, width)
    # a JPEG may be decoded smaller, which is quicker, but its box to no less than twice the side
    shrink = max(min(tall, wide) // (2 * side), 1)
    image.draft("L" if channels == 1 else None, (-(-image.width // shrink), -(-image.height // shrink)))
    image = plain(image, "RGB" if channels == 3 else "L")
    x, y = image.width / width, image.height / height
    cut = image.crop((round(left * x), round(top * y), round((left + wide) * x), round((top + tall) * y)))
    pixels = torch.from_numpy(np.array(cut)).view(cut.height, cut.width, channels)
    # on uint8 twice as quick as Pillow's own
    return TF.resize(pixels.permute(2, 0, 1), [side, side], antialias=True).numpy()


def _centre(height: int, width: int) -> tuple[int, int, int, int]:
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def is_grey(image: Image.Image) -> bool:
    """Whether an image has brightness alone: one channel, and no palette."""
    return len(image.getbands()) == 1 and image.mode != "P"


def plain(image: Image.Image, mode: str) -> Image.Image:
    """An image upright, as uint8 in the mode "RGB" or "L"; see `square`."""
    orientation = image.getexif().get(ExifTags.Base.Orientation)
    if orientation in UPRIGHT:
        image = image.transpose(UPRIGHT[orientation])
    if image.mode.startswith(("I", "F")):
        grey = np.asarray(image)
        low, high = float(grey.min()), float(grey.max())
        most = 1 if image.mode == "F" else next((most for most in (255, 4095) if high <= most), 65535)
        if not 0 <= low <= high <= most:
            raise ValueError(f"its values are {low:g} to {high:g}, not 0 to {most}")
        image = Image.fromarray((grey * 255 + 0.5 if most == 1 else grey // ((most + 1) // 256)).astype(np.uint8))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)
