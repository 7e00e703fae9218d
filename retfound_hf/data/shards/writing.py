"""One shard: a parquet file whose schema tells `datasets` the features."""

import os
import posixpath
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...images.reading import IMAGE_SUFFIXES
from ...runs.files import whole_file
from .items import Item
from .worker import Prepared

if TYPE_CHECKING:
    import datasets

ROW_GROUP = 100  # images: what a streaming reader fetches at once, some 2 MB
SUFFIXES = {"jpeg": ".jpg", "png": ".png"}


def shard_features(kept: Mapping[str, Any]) -> "datasets.Features":
    """Features of the shards: `image`, `id`, `hash` and the carried columns."""
    import datasets

    text = datasets.Value("string")
    return datasets.Features({"image": datasets.Image(), "id": text, "hash": text, **kept})


class Shard:
    """A shard in the making; rows go to disk as soon as they fill a row group."""

    def __init__(self, path: Path, schema: pa.Schema, image_format: str, stack: ExitStack):
        self.path = path
        self.rows = 0
        self.image_bytes = 0
        self._schema = schema
        self._suffix = SUFFIXES[image_format]
        self._stack = stack
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[tuple[Any, ...]] = []

    def add(self, item: Item, prepared: Prepared) -> None:
        """Append one image."""
        image = {"bytes": prepared.image, "path": file_name(item.id) + self._suffix}
        self._pending.append((image, item.id, prepared.hash, *item.kept))
        self.rows += 1
        self.image_bytes += len(prepared.image)
        if len(self._pending) == ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what is pending; a shard without rows never becomes a file."""
        if not self._pending:
            return
        if self._writer is None:
            partial = self._stack.enter_context(whole_file(self.path))
            self._writer = self._stack.enter_context(pq.ParquetWriter(partial, self._schema))
        columns = zip(self._schema, zip(*self._pending, strict=True), strict=True)
        arrays = [pa.array(values, field.type) for field, values in columns]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._pending.clear()


@contextmanager
def open_shard(path: Path, schema: pa.Schema, image_format: str) -> Iterator[Shard]:
    """A shard that appears at `path` when the `with` ends well and has rows; an old one there is replaced or removed.

    Args:
        schema: of `shard_features(...).arrow_schema`, which carries the features as metadata.
    """
    for leftover in path.parent.glob(f".{path.stem}-*{path.suffix}"):  # of a run that was killed
        leftover.unlink(missing_ok=True)
    with ExitStack() as stack:
        shard = Shard(path, schema, image_format, stack)
        yield shard
        shard.flush()
    if not shard.rows:
        path.unlink(missing_ok=True)


def file_name(name: str) -> str:
    """The last part of an id, without the suffix of an image file."""
    stem, suffix = os.path.splitext(posixpath.basename(name))
    return stem if suffix.lower() in IMAGE_SUFFIXES else stem + suffix
