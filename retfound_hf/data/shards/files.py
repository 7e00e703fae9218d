"""Sources whose images are files: a folder, or a table of paths."""

import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from ...images.reading import IMAGE_SUFFIXES
from ...runs.errors import RetFoundError
from ..checks import check_columns
from ..tables import read_table
from .items import ACCEPTED, Item, Source

BATCH = 1000


class FileSource(Source):
    """Items whose `ref` is the path of a file."""

    def stamp(self, item: Item) -> Any:
        return file_stamp(item.ref)

    def opener(self) -> Callable[[str], str]:
        return str


class FolderSource(FileSource):
    """The image files under a folder, named by their paths within it."""

    def __init__(self, folder: Path):
        self.name = str(folder.absolute())
        self.kept_features: dict[str, Any] = {}
        # Counted at the price of a second listing: hours of work deserve a progress bar that knows its end.
        progress = tqdm(walk_images(self.name), desc="Listing", unit="image", leave=False)
        self._count = sum(1 for _ in progress)
        if not self._count:
            raise RetFoundError(f"{folder} holds no image; give {ACCEPTED}")

    def __len__(self) -> int:
        return self._count

    def items(self) -> Iterator[Item]:
        for path in walk_images(self.name):
            yield Item(as_utf8(path), f"{self.name}/{path}")


class TableSource(FileSource):
    """The paths in the image column of a table, named by its column `id`, or else as the paths are written."""

    def __init__(self, path: Path, image_column: str, keep_columns: Sequence[str]):
        self.name = str(path.absolute())
        table = read_table(path, ("id", *keep_columns))
        check_columns(table, [image_column], path, "--image_column")
        check_columns(table, keep_columns, path, "--keep_columns")
        named = ["id"] if "id" in table.columns and image_column != "id" else []
        for column in (image_column, *named):
            if table[column].isna().any():
                rows = [str(row) for row in table.index[table[column].isna()][:5] + 1]
                raise RetFoundError(f"{path}: rows without a value in column {column} (row {', '.join(rows)})")
        try:
            columns = pa.Table.from_pandas(table[[image_column, *named, *keep_columns]], preserve_index=False)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise RetFoundError(f"{path} has a column with values of several types: {error}") from error
        import datasets

        kept = columns.select(list(keep_columns)).replace_schema_metadata(None)
        self.kept_features = datasets.Features.from_arrow_schema(kept.schema) if keep_columns else {}
        columns = {"path": columns[image_column], "id": columns["id" if named else image_column]}
        columns = {name: pc.cast(column, pa.string()) for name, column in columns.items()}
        self._table = pa.table({**columns, **{f"kept_{name}": kept[name] for name in keep_columns}})
        self._is_named = bool(named)

    def __len__(self) -> int:
        return self._table.num_rows

    def items(self) -> Iterator[Item]:
        root = posixpath.dirname(self.name)
        for batch in self._table.to_batches(max_chunksize=BATCH):
            for written, name, *kept in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                path = posixpath.join(root, written.replace("\\", "/"))
                yield Item(name if self._is_named else _name(path, root), path, tuple(kept))


def walk_images(folder: str) -> Iterator[str]:
    """Paths relative to `folder` of what `images.reading.find_images` finds, in its order, one folder in memory."""
    try:
        with os.scandir(folder) as entries:
            # Names alone, since a folder may hold a million of them.
            is_folder = {entry.name: entry.is_dir() for entry in entries if _is_wanted(entry)}
    except OSError:
        return
    for name in sorted(is_folder):
        if is_folder[name]:
            for path in walk_images(f"{folder}/{name}"):
                yield f"{name}/{path}"
        else:
            yield name


def file_stamp(path: str) -> tuple[int, int] | None:
    """Size and time of change (ns); None where there is no file."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def as_utf8(name: str) -> str:
    """A file's name as text that can be stored: bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _is_wanted(entry: os.DirEntry) -> bool:
    return not entry.name.startswith(".") and (entry.name.lower().endswith(IMAGE_SUFFIXES) or entry.is_dir())


def _name(path: str, root: str) -> str:
    path = posixpath.normpath(path)
    return as_utf8(path.removeprefix(posixpath.normpath(root) + "/"))
