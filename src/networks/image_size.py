"""How small an image a network takes."""

from __future__ import annotations


def require_image_size(network: str, image_size: int, minimum: int) -> None:
    """Raise ValueError if `image_size` (pixels) leaves `network` no map to look at."""
    if image_size < minimum:
        raise ValueError(
            f"image_size={image_size} is too small for {network}: it needs at least {minimum} px. "
            f"Set data.image_size={minimum} or larger, or choose a network that halves the image less often."
        )
