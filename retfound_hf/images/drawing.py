"""Pictures for people: contact sheets, heat maps, overlays with a scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..errors import BadDataError, require_range
from .field_of_view import ImageRegion

PAPER, INK = (255, 255, 255), (40, 40, 40)
SMALLEST_FONT = 8
# Perceptually even, readable with every kind of colour vision, and without the red and orange of a fundus.
COLOUR_MAP = "viridis"
OPACITY = 0.75
LEAST_TOP = 3.0


def contact_sheet(
    rows: Sequence[Sequence[Image.Image | Tensor]],
    titles: Sequence[str] | None = None,
    tile: int | None = None,
    margin: int | None = None,
) -> Image.Image:
    """Lay out pictures in rows, such as original, masked and reconstructed, under small column titles.

    Args:
        rows: pictures, the same number in each row. A tensor is (channels, height, width) with 1 or 3 channels, or
            (height, width); floats span 0..1, anything else 0..255.
        titles: one per column; None leaves them out. One that is too wide is set smaller, then cut.
        tile: width and height in pixels of every picture on the sheet, into which it is fitted with its shape kept;
            None takes the longest side of the first one.
        margin: pixels around and between the pictures; None takes 1/28 of the tile.

    Returns:
        An RGB image.

    Raises:
        BadDataError: no pictures, rows of unequal length, another number of titles, or a tensor of another shape.
        BadArgumentError: a tile or margin out of range.
    """
    if not rows or not rows[0]:
        raise BadDataError("no pictures for the contact sheet; give at least one row with one picture")
    columns = len(rows[0])
    uneven = next((number for number, row in enumerate(rows, start=1) if len(row) != columns), None)
    if uneven is not None:
        raise BadDataError(
            f"row {uneven} has {len(rows[uneven - 1])} pictures and row 1 has {columns}; give equal rows"
        )
    if titles is not None and len(titles) != columns:
        raise BadDataError(f"{len(titles)} titles for {columns} columns; give one per column")
    pictures = [[_as_image(picture) for picture in row] for row in rows]
    tile = max(pictures[0][0].size) if tile is None else tile
    margin = max(2, round(tile / 28)) if margin is None else margin
    require_range("tile", tile, 1)
    require_range("margin", margin, 0)
    header = round(1.6 * _font_size(tile)) if titles is not None else 0
    step = tile + margin
    sheet = Image.new("RGB", (margin + columns * step, header + margin + len(rows) * step), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles or ()):
        text, font = fit_text(title, tile, _font_size(tile), SMALLEST_FONT)
        draw.text((margin + column * step + tile / 2, (margin + header) / 2), text, fill=INK, font=font, anchor="mm")
    for i, row in enumerate(pictures):
        for j, picture in enumerate(row):
            if max(picture.size) != tile:
                picture = ImageOps.contain(picture, (tile, tile), Image.Resampling.BICUBIC)
            x = margin + j * step + (tile - picture.width) // 2
            y = header + margin + i * step + (tile - picture.height) // 2
            sheet.paste(picture, (x, y))
    return sheet


def _as_image(picture: Image.Image | Tensor) -> Image.Image:
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    values = picture.detach()
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[0] not in (1, 3) or 0 in values.shape:
        raise BadDataError(
            f"a picture has shape {tuple(picture.shape)}; give (3 or 1, height, width) or (height, width)"
        )
    if values.is_floating_point():
        # Undefined pixels are drawn black rather than cast to a colour that depends on the machine.
        values = (values.float().nan_to_num(0.0).clamp(0, 1) * 255).round()
    values = values.to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).cpu()
    return Image.fromarray(np.ascontiguousarray(values.numpy()))


def _font_size(tile: int) -> int:
    return max(SMALLEST_FONT, min(round(tile / 15), 32))


def fit_text(text: str, width: float, size: int, smallest: int | None = None) -> tuple[str, ImageFont.FreeTypeFont]:
    """Make a text at most `width` pixels wide: set it smaller than `size`, down to `smallest`, then cut it.

    Args:
        text: one line.
        width: in pixels.
        size: of the font in pixels.
        smallest: size of the font; None keeps `size`.

    Returns:
        The text and its font.
    """
    font = ImageFont.load_default(size)
    while font.getlength(text) > width and size > (smallest or size):
        size -= 1
        font = ImageFont.load_default(size)
    while text and font.getlength(text) > width:
        text = text[:-1]
    return text, font


@dataclass(frozen=True)
class Heat:
    """Map on the image that it was made from, ready to be coloured.

    Attributes:
        values: float32 (height, width). 0 is the average of the image's patches or less, also outside the network's
            input; 1 is `top`.
        top: the hottest colour, in multiples of the average.
    """

    values: np.ndarray
    top: float


def heat_on_image(patches: np.ndarray, region: ImageRegion, size: tuple[int, int]) -> Heat:
    """Scale a map by its average and lay it on the image.

    The average is the value of every patch if relevance were spread evenly. A map without a peak of `LEAST_TOP`
    averages stays pale, however its small differences are spread. Negative values count as 0.

    Args:
        patches: (grid, grid), negative values are evidence against the target.
        region: of the network's input on the image (`RetFoundImageProcessor.input_window`).
        size: width and height of the image in pixels.
    """
    positive = np.clip(np.asarray(patches, dtype=np.float64), 0, None)
    average = positive.mean()
    multiples = positive / average if average > 0 else positive
    top = max(float(multiples.max()), LEAST_TOP)
    return Heat(region.place((multiples - 1).clip(0) / (top - 1), size), top)


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
    """The picture above a strip with a caption and a colour bar from the average to `top` times it."""
    width = max(picture.width, 96)
    unit = max(10, min(round(width / 42), 28))
    caption, font = fit_text(caption, width - unit, unit)
    strip = Image.new("RGB", (width, round(3.9 * unit)), PAPER)
    draw = ImageDraw.Draw(strip)
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
    """Opacity over heat: none at the average, full from half of the largest value on."""
    return np.clip(2 * heat, 0, 1)


@cache
def _table() -> np.ndarray:
    return np.rint(colormaps[COLOUR_MAP](np.arange(256))[:, :3] * 255)
