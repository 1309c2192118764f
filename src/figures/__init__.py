"""Arrays in, matplotlib figures out: `style` is the one palette and the one style, the others draw.

pyplot is never touched, so a figure can be drawn in any thread and without a screen.
"""

# ruff: noqa: F401 (the names are handed on)
from src.figures.classes import class_bars, confusion_matrix, reliability, slices
from src.figures.corruptions import corruption_curves
from src.figures.dynamics import data_map
from src.figures.epochs import compare, curves, over_minutes, overfit_epoch
from src.figures.images import examples, feature_maps, filters, heat_maps, image_grid, sample_sheet, tiled
from src.figures.style import (
    BLUE,
    COLOURS,
    GREY,
    VERMILION,
    Figure,
    compact,
    house_style,
    percent,
    pixels,
    save,
    save_for_paper,
    save_pixels,
)
