"""The images of pretraining: shards on disk or on the Hub, decoded to uint8 batches in the loader's workers."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..data.sources import find_shards
from ..images.reading import UnreadableImageError
from ..runs.errors import RetFoundError, one_line
from ..runs.hub_lookup import look_up_data_set
from .decoding import decode, encoded_bytes

if TYPE_CHECKING:
    import datasets

    from .streaming.table import StreamedTable

LOOKED_AT = 1024


def open_shards(sources: Sequence[str], cache_dir: str | None = None) -> "datasets.Dataset":
    """All shards as one memory-mapped table with the columns `image` (encoded) and `id`.

    `datasets` converts parquet files into its cache once; later runs map that.

    Args:
        sources: folders with parquet files in them, parquet files, or Hub ids; the latter are fetched.

    Raises:
        RetFoundError: nothing there, or no column `image`.
    """
    import datasets

    tables = []
    for source in sources:
        path = Path(source)
        files = [str(shard) for shard in find_shards(path)] if path.is_dir() else [source]
        if path.exists() and not (files and files[0].endswith(".parquet")):
            raise RetFoundError(f"--train_data {source} holds no parquet shards; make them with prepare_images")
        try:
            if path.exists():
                table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache_dir)
            else:
                look_up_data_set(source)
                table = datasets.load_dataset(source, split="train", cache_dir=cache_dir)
        except Exception as error:  # loading runs through many readers, each with its own errors
            raise RetFoundError(
                f"--train_data {source} cannot be read ({one_line(error)}); give a folder made by prepare_images"
            ) from error
        if "image" not in table.column_names:
            raise RetFoundError(
                f"--train_data {source} has no column image; its columns are {', '.join(table.column_names)}"
            )
        table = table.cast_column("image", datasets.Image(decode=False))
        if "id" not in table.column_names:
            table = table.add_column("id", [f"{source}/{row}" for row in range(len(table))])
        tables.append(table.select_columns(["image", "id"]).cast_column("id", datasets.Value("string")))
    return tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)


def fingerprint(table: "datasets.Dataset") -> str:
    """Tells whether a resumed run sees the same images in the same order: their number, and a thousand of them."""
    rows = np.unique(np.linspace(0, len(table) - 1, min(LOOKED_AT, len(table))).astype(int))
    digest = hashlib.sha256(repr(len(table)).encode())
    for row in rows.tolist():  # one at a time: they may be large
        item = table[row]
        image = item["image"] or {}
        digest.update(repr((item["id"], hashlib.sha256(image.get("bytes") or b"").digest())).encode())
    return digest.hexdigest()[:16]


class ImageReader:
    """Reads rows of the table; the place of an unreadable image is taken by the next readable one.

    Args:
        table: see `open_shards`, or a `StreamedTable`.
        max_bad_share: how many in a row may be unreadable, as a share of the table.
    """

    def __init__(self, table: "datasets.Dataset | StreamedTable", max_bad_share: float = 1.0):
        self.table = table
        self.tries = max(1, min(len(table), 100, round(max_bad_share * len(table)) + 1))
        self.side = self._first_side()

    def read(self, rows: Sequence[int]) -> tuple[Tensor, list[str], list[tuple[str, str]]]:
        """Images uint8 (rows, 3, side, side), their ids, and (id, reason) of every unreadable one met."""
        found = self.table[list(rows)]
        pixels = torch.empty(len(rows), 3, self.side, self.side, dtype=torch.uint8)
        ids: list[str] = []
        rejected: list[tuple[str, str]] = []
        for place, row in enumerate(rows):
            item = {"image": found["image"][place], "id": found["id"][place]}
            for offset in range(1, self.tries + 1):
                try:
                    pixels[place] = self._decoded(item["image"])
                    break
                except UnreadableImageError as error:
                    rejected.append((item["id"], str(error)))
                    item = self.table[(int(row) + offset) % len(self.table)]
            else:
                raise RetFoundError(
                    f"{self.tries} images in a row are unreadable, from {rejected[-self.tries][0]} on "
                    f"({rejected[-1][1]}); mend the shards, or raise --max_bad_share"
                )
            ids.append(item["id"])
        return pixels, ids, rejected

    def close(self) -> None:
        """Remove what a stream of shards has on the disk."""
        if hasattr(self.table, "close"):
            self.table.close()

    def spread_rows(self, count: int) -> list[int]:
        """Rows far from each other, in one shard where shards are fetched one by one."""
        images = getattr(self.table, "rows_at_hand", len(self.table))
        return sorted({images * number // count for number in range(count)})

    def _decoded(self, image: dict[str, Any] | None) -> Tensor:
        pixels = decode(encoded_bytes(image))
        if pixels.shape != (3, self.side, self.side):
            height, width = pixels.shape[1:]
            raise UnreadableImageError(f"its size is {width} x {height}, others have {self.side} x {self.side}")
        return pixels

    def _first_side(self) -> int:
        for row in range(self.tries):
            item = self.table[row]
            try:
                height, width = decode(encoded_bytes(item["image"])).shape[1:]
            except UnreadableImageError:
                continue
            if height != width:
                raise RetFoundError(
                    f"image {item['id']} is {width} x {height}, and pretraining takes squares; make shards with "
                    "prepare_images"
                )
            return height
        raise RetFoundError(f"the first {self.tries} images of --train_data cannot be read; mend the shards")
