"""Maps as pictures: a layer of colour, the overlay on the image, the strip with its scale."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from ..images.window import Window

# Perceptually even, readable with every kind of colour vision, and without the red and orange of a fundus.
COLOUR_MAP = "viridis"
OPACITY = 0.75
LEAST_TOP = 3.0
PAPER, INK = (255, 255, 255), (40, 40, 40)


@dataclass(frozen=True)
class Heat:
    """A map on the image that it was made from, ready to be coloured.

    Attributes:
        values: float32 (height, width). 0 is the average of the image's patches or less, where the network saw
            nothing too; 1 is `top`.
        top: the hottest colour, in multiples of the average.
    """

    values: np.ndarray
    top: float


def heat_on_image(patches: np.ndarray, window: Window, size: tuple[int, int]) -> Heat:
    """Scale a map by its average and lay it on the image.

    The average is what every patch would have, were relevance spread evenly. A map without a peak of `LEAST_TOP`
    averages stays pale, however its small differences are spread. What speaks against the target is taken for 0.

    Args:
        patches: (grid, grid), negative values speaking against the target.
        window: of the network's input on the image (`RetFoundImageProcessor.input_window`).
        size: width and height of the image in pixels.
    """
    positive = np.clip(np.asarray(patches, dtype=np.float64), 0, None)
    average = positive.mean()
    multiples = positive / average if average > 0 else positive
    top = max(float(multiples.max()), LEAST_TOP)
    return Heat(window.place((multiples - 1).clip(0) / (top - 1), size), top)


def colour_layer(heat: np.ndarray, opacity: float = OPACITY) -> Image.Image:
    """Heat of 0 to 1 (height, width) as an RGBA picture, the more opaque the hotter, up to `opacity`."""
    table = np.concatenate([_table(), np.rint(_alpha(np.arange(256) / 255) * opacity * 255)[:, None]], axis=1)
    return Image.fromarray(table.astype(np.uint8)[_levels(heat)])


def colours(heat: np.ndarray) -> np.ndarray:
    """Heat of 0 to 1 (height, width) as uint8 (height, width, 3)."""
    return _table().astype(np.uint8)[_levels(heat)]


def overlay(image: Image.Image, heat: np.ndarray, opacity: float = OPACITY) -> Image.Image:
    """The image under its heat, RGB of the image's size."""
    picture = image.convert("RGB")
    layer = colour_layer(heat, opacity)
    picture.paste(layer, mask=layer)  # blends by the layer's opacity
    return picture


def with_scale(picture: Image.Image, caption: str, top: float) -> Image.Image:
    """The picture above a strip with a caption and the colours of heat, from the average to `top` times it."""
    width = max(picture.width, 96)
    font = ImageFont.load_default(max(10, min(round(width / 42), 28)))
    unit = round(font.size)
    strip = Image.new("RGB", (width, round(3.9 * unit)), PAPER)
    draw = ImageDraw.Draw(strip)
    while caption and font.getlength(caption) > width - unit:
        caption = caption[:-1]
    draw.text((unit / 2, unit * 0.4), caption, fill=INK, font=font)
    low, high = "average", f"{top:.1f} x average"
    left = round(unit + font.getlength(low))
    right = round(min(width - unit - font.getlength(high), left + 16 * unit))
    top, height = round(2.2 * unit), round(unit * 0.9)
    bar = np.tile(np.linspace(0, 1, max(right - left, 2)), (height, 1))
    strip.paste(overlay(Image.new("RGB", bar.shape[::-1], (110, 110, 110)), bar), (left, top))
    draw.text((unit / 2, top + height / 2), low, fill=INK, font=font, anchor="lm")
    draw.text((right + unit / 2, top + height / 2), high, fill=INK, font=font, anchor="lm")
    page = Image.new("RGB", (width, picture.height + strip.height), PAPER)
    page.paste(picture, ((width - picture.width) // 2, 0))
    page.paste(strip, (0, picture.height))
    return page


def _levels(heat: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(heat, 0, 1) * 255).astype(np.uint8)


def _alpha(heat: np.ndarray) -> np.ndarray:
    """Opacity over heat: none where there is nothing to say, full from half of the largest value on."""
    return np.clip(2 * heat, 0, 1)


@cache
def _table() -> np.ndarray:
    return np.rint(colormaps[COLOUR_MAP](np.arange(256))[:, :3] * 255)
