"""Pictures in rows and titled columns on one page."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..runs.errors import RetFoundError

PAPER, INK = (255, 255, 255), (40, 40, 40)
SMALLEST_FONT = 8


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
        RetFoundError: no pictures, rows of unequal length, another number of titles, or a tensor of another shape.
    """
    if not rows or not rows[0]:
        raise RetFoundError("no pictures for the contact sheet; give at least one row with one picture")
    columns = len(rows[0])
    uneven = next((number for number, row in enumerate(rows, start=1) if len(row) != columns), None)
    if uneven is not None:
        raise RetFoundError(
            f"row {uneven} has {len(rows[uneven - 1])} pictures and row 1 has {columns}; give equal rows"
        )
    if titles is not None and len(titles) != columns:
        raise RetFoundError(f"{len(titles)} titles for {columns} columns; give one per column")
    pictures = [[_as_image(picture) for picture in row] for row in rows]
    tile = max(pictures[0][0].size) if tile is None else tile
    margin = max(2, round(tile / 28)) if margin is None else margin
    if tile < 1 or margin < 0:
        raise RetFoundError(f"tile {tile} must be at least 1 pixel and margin {margin} at least 0")
    header = round(1.6 * _font_size(tile)) if titles is not None else 0
    step = tile + margin
    sheet = Image.new("RGB", (margin + columns * step, header + margin + len(rows) * step), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles or ()):
        text, font = _fitted(title, tile)
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
        raise RetFoundError(
            f"a picture has shape {tuple(picture.shape)}; give (3 or 1, height, width) or (height, width)"
        )
    if values.is_floating_point():
        # Undefined pixels are drawn black rather than cast to a colour that depends on the machine.
        values = (values.float().nan_to_num(0.0).clamp(0, 1) * 255).round()
    values = values.to(torch.uint8).expand(3, -1, -1).permute(1, 2, 0).cpu()
    return Image.fromarray(np.ascontiguousarray(values.numpy()))


def _font_size(tile: int) -> int:
    return max(SMALLEST_FONT, min(round(tile / 15), 32))


def _fitted(title: str, width: int) -> tuple[str, ImageFont.ImageFont | ImageFont.FreeTypeFont]:
    """The title and a font in which it is at most `width` pixels wide."""
    size = _font_size(width)
    font = ImageFont.load_default(size)
    while font.getlength(title) > width and size > SMALLEST_FONT:
        size -= 1
        font = ImageFont.load_default(size)
    while title and font.getlength(title) > width:
        title = title[:-1]
    return title, font
