"""The folder that `explain` writes: pictures, arrays (float32), a table and a contact sheet."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..images.contact_sheet import contact_sheet
from .names import FileNames
from .pictures import INK, PAPER
from .sources import Opened

PICTURES, ARRAYS = "pictures", "arrays"
TILE = 256


class Outputs:
    """Takes images one by one and keeps no more of each than a row, its patches and, for the first, a small picture.

    Args:
        folder: to write into.
        sheet_images: images on the contact sheet.
        titles: of one image's pictures on the contact sheet.
    """

    def __init__(self, folder: Path, sheet_images: int, titles: Sequence[str]):
        self.folder, self.sheet_images, self.titles = folder, sheet_images, tuple(titles)
        self.names = FileNames()
        self.rows: list[dict[str, Any]] = []
        self.patches: dict[str, list[np.ndarray]] = {}
        self.tiles: list[list[Image.Image]] = []
        for name in (PICTURES, ARRAYS):
            (folder / name).mkdir()

    def add(
        self,
        item: Opened,
        row: dict[str, Any],
        picture: Image.Image,
        patches: dict[str, np.ndarray],
        on_image: np.ndarray,
        tiles: Sequence[Image.Image],
        caption: str,
    ) -> None:
        """Write an image's picture and its map, and note the rest.

        Args:
            row: of the table, without id and files.
            patches: (grid, grid) arrays for `maps.npz`, the same names for every image.
            on_image: (height, width) of the picture, for `arrays/`, saved as float32.
            tiles: the pictures for the contact sheet, one for each title.
            caption: below them.
        """
        name = self.names(item.source.id)
        picture.save(self.folder / PICTURES / f"{name}.png")
        # Maps carry the scale of the logits: below 6e-5 float16 would leave a calibrated head's a few distinct levels.
        np.save(self.folder / ARRAYS / f"{name}.npy", on_image.astype(np.float32))
        files = {"picture": f"{PICTURES}/{name}.png", "array": f"{ARRAYS}/{name}.npy"}
        self.rows.append({"id": item.source.id, **row, **files})
        window = [item.window.left, item.window.top, item.window.right, item.window.bottom]
        for key, value in {**patches, "window": np.array(window), "image_size": np.array(item.size)}.items():
            self.patches.setdefault(key, []).append(value)
        if len(self.tiles) < self.sheet_images:
            self.tiles.append([_tile(tile, caption if index == 0 else "") for index, tile in enumerate(tiles)])

    def close(self) -> None:
        """Write `maps.csv`, `maps.npz` and `contact_sheet.png`."""
        table = pd.DataFrame(self.rows)
        table.to_csv(self.folder / "maps.csv", index=False, float_format="%.6g")
        arrays = {name: np.stack(values) for name, values in self.patches.items()}
        np.savez(self.folder / "maps.npz", id=table["id"].to_numpy(str), **arrays)
        # Two images side by side, where there are enough.
        across = 2 if len(self.tiles) > 3 and len(self.titles) == 2 else 1
        blank = Image.new("RGB", self.tiles[0][0].size, PAPER)
        padded = self.tiles + [[blank] * len(self.titles)] * (-len(self.tiles) % across)
        rows = [list(chain(*padded[start : start + across])) for start in range(0, len(padded), across)]
        sheet = contact_sheet(rows, titles=self.titles * across, tile=max(blank.size), margin=8)
        sheet.save(self.folder / "contact_sheet.png")


def _tile(picture: Image.Image, caption: str) -> Image.Image:
    """A picture of `TILE` pixels above a line of text."""
    font = ImageFont.load_default(14)
    page = Image.new("RGB", (TILE, TILE + 22), PAPER)
    small = ImageOps.contain(picture, (TILE, TILE), Image.Resampling.BICUBIC)
    page.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    while caption and font.getlength(caption) > TILE:
        caption = caption[:-1]
    ImageDraw.Draw(page).text((TILE / 2, TILE + 11), caption, fill=INK, font=font, anchor="mm")
    return page
