"""Images from anywhere: folders, tables, parquet shards and data sets as lazy lists of references to images."""

import hashlib
import os
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..errors import BadDataError
from ..files import file_stamp
from ..images.reading import walk_images
from . import tables
from .parquet import (
    content_of,
    image_field,
    parquet_errors,
    read_bounded,
    roots_of,
    splits_of_shards,
)
from .tables import (
    METADATA,
    check_columns,
    check_filled,
    read_metadata,
    read_table,
    splits_of,
    table_images,
    warn_of_passed_over,
)

ACCEPTED = (
    "a folder of images, a CSV or parquet table with a column image, a folder of parquet shards, a folder that "
    "save_to_disk wrote, or the id of a data set on the Hugging Face Hub"
)
BATCH = 1000  # rows that are listed at once
SHARD = "shard "  # a column of our own: those of files have no blank at the end


class ImageRef(NamedTuple):
    """One image, not read yet.

    Attributes:
        id: name that it keeps in all outputs.
        image: path, or encoded bytes; of a data set the place of the row, which `ImageSource.opener` reads.
        facts: columns that are carried along, such as a label.
    """

    id: str
    image: Any
    facts: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Part:
    """Images in a row that are worked on together.

    Attributes:
        index, name: position, and a unique name that fits a file.
        refs: the images.
    """

    index: int
    name: str
    refs: Sequence[ImageRef] = field(repr=False)
    source: "ImageSource" = field(repr=False)

    @cached_property
    def identity(self) -> str:
        """Digest of ids, file sizes and times, and facts: another one means that an image has changed."""
        digest = hashlib.blake2b(digest_size=16)
        for ref in self.refs:
            digest.update(repr((ref.id, self.source.stamp(ref), tuple(ref.facts.values()))).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class ShardPart:
    """A parquet file with a column of images (bytes and path); `refs` reads it on every access.

    Attributes:
        index, name: position, and a unique name that fits a file.
        path: of the file.
        column: of the images.
        ids: of the images.
        roots: see `placed`.
    """

    index: int
    name: str
    path: Path
    column: str
    ids: Sequence[str] = field(repr=False)
    roots: Sequence[str] = ()

    @property
    def refs(self) -> list[ImageRef]:
        cells = read_bounded(self.path, [self.column])[self.column].to_pylist()
        return [ImageRef(name, content_of(cell, self.roots)) for name, cell in zip(self.ids, cells, strict=True)]

    @cached_property
    def identity(self) -> str:
        """Digest of path, size and time of change."""
        return hashlib.blake2b(repr((str(self.path), file_stamp(self.path))).encode(), digest_size=16).hexdigest()


class ImageSource:
    """Some images in a fixed order. Another kind of source is a subclass.

    Attributes:
        name: path, or Hub id.
        features: `datasets` features of the columns that are carried along.
    """

    name: str
    features: "Mapping[str, Any]" = {}

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Iterator[ImageRef]:
        """All images; no more than one folder or batch of them is in memory."""
        raise NotImplementedError

    def stamp(self, ref: ImageRef) -> Any:
        """Mark that changes when the content of the image does; its repr is hashed."""
        return file_stamp(ref.image)

    def columns(self) -> pd.DataFrame | None:
        """Further columns of the source, such as patients, with the `id` of each image; None where it has none."""
        return None

    def opener(self) -> Callable[[Any], str | bytes]:
        """Picklable function from `ImageRef.image` to a path or the bytes of a file."""
        return _as_it_is

    def parts(self, size: int) -> Iterator[Part | ShardPart]:
        """The images cut into parts of `size`, the last of which may be smaller; a shard is a part of its own."""
        refs = iter(self)
        index = 0
        while some := list(islice(refs, size)):
            yield Part(index, f"{index:05d}", some, self)
            index += 1


class FolderSource(ImageSource):
    """Image files under a folder, named by their paths within it; other files are named in a warning."""

    def __init__(self, folder: str, accepted: str = ACCEPTED):
        self.name = folder
        self._others: list[str] | None = None
        if next(walk_images(folder), None) is None:
            raise BadDataError(f"{folder} holds no image; give {accepted}", source=folder)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        # At the price of a second listing: hours of work deserve a progress bar that knows its end.
        return sum(1 for _ in tqdm(iter(self), desc="Listing", unit="image", leave=False))

    def __iter__(self) -> Iterator[ImageRef]:
        others: list[str] = []
        for path in walk_images(self.name, others):
            yield ImageRef(as_utf8(path), f"{self.name}/{path}")
        if self._others is None:  # once
            self._others = others
            warn_of_passed_over(self.name, others)

    def columns(self) -> pd.DataFrame | None:
        path = Path(self.name) / METADATA
        return read_metadata(path).rename(columns={"image": "id"}) if path.is_file() else None


class TableSource(ImageSource):
    """Paths in a column of a table, named by their paths relative to its folder, as in labelled sets.

    Args:
        path: of the table.
        image_column: holds the paths.
        image_root: folder at which relative paths start; by default that of the table.
        keep_columns: carried along.
        by_id: name images by the column `id`, where there is one.
    """

    def __init__(
        self, path: str, image_column: str = "image", image_root: str | None = None, keep_columns: Sequence[str] = (),
        by_id: bool = False,
    ):  # fmt: skip
        self.name = path
        table = read_table(Path(path), ("id", *keep_columns))
        check_columns(table, keep_columns, path, "keep_columns")
        listed = table_images(table, path, image_column, image_root)
        if by_id and "id" in table.columns and image_column != "id":
            check_filled(table, "id", path)
            listed = listed.assign(id=table["id"])
        listed = listed.assign(image=tables.find_files(listed["image"], path))
        try:
            kept = pa.Table.from_pandas(table[list(keep_columns)], preserve_index=False).replace_schema_metadata(None)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise BadDataError(f"{path} has a column with values of several types: {error}", source=path) from error
        if keep_columns:
            import datasets

            self.features = datasets.Features.from_arrow_schema(kept.schema)
        self._columns = listed.drop(columns="image")
        # As Arrow, which takes less memory than pandas' strings.
        texts = {name: pa.array(listed[name].astype(str), pa.string()) for name in ("id", "image")}
        self._table = pa.table({**texts, **{f"kept_{name}": kept[name] for name in keep_columns}})

    def __len__(self) -> int:
        return self._table.num_rows

    def __iter__(self) -> Iterator[ImageRef]:
        for batch in self._table.to_batches(max_chunksize=BATCH):
            for name, path, *facts in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield ImageRef(name, path, dict(zip(self.features, facts, strict=True)))

    def columns(self) -> pd.DataFrame:
        return self._columns


class ListSource(ImageSource):
    """Images given one by one: paths, encoded bytes or `PIL.Image`s, named by `ids`, their paths or their places."""

    name = "the list"

    def __init__(self, images: Sequence[Any], ids: Sequence[str] | None = None):
        if not len(images):
            raise BadDataError("the list holds no image; give at least one", source=self.name)
        images = [str(image) if isinstance(image, Path) else image for image in images]
        names = ids or [image if isinstance(image, str) else str(place) for place, image in enumerate(images)]
        self.refs = [ImageRef(name, image) for name, image in zip(names, images, strict=True)]

    def __len__(self) -> int:
        return len(self.refs)

    def __iter__(self) -> Iterator[ImageRef]:
        return iter(self.refs)

    def stamp(self, ref: ImageRef) -> Any:
        return file_stamp(ref.image) if isinstance(ref.image, str) else None


class ShardSource(ImageSource):
    """Parquet files that hold images, read one by one; images have the ids of a labelled set, see `stored_ids`."""

    def __init__(self, name: str, shards: Sequence[Path], image_column: str = "image", image_root: str | None = None):
        self.name, self._splits = name, splits_of_shards(name, shards)
        self._roots = roots_of(name, image_root)
        self._fields = {shard: image_field(shard, image_column) or image_column for shard in shards}
        with parquet_errors(name):
            is_empty = not any(pq.read_metadata(shard).num_rows for shard in shards)
        if is_empty:
            raise BadDataError(f"{name} has no rows", source=name)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[ImageRef]:
        for part in self.parts():
            yield from part.refs

    @cached_property
    def _rows(self) -> pd.DataFrame:
        """`shard`, `id` and the other columns of every image."""
        found, numbers, paths, root = [], [], [], os.path.abspath(self.name)
        names = splits_of(self._splits)
        for split, shards in self._splits.items():
            first = len(numbers)
            for shard in shards:
                column = self._fields[shard]
                with parquet_errors(shard):
                    schema = pq.read_schema(shard)
                    wanted = [name for name in schema.names if name != column]
                    kind = schema.field(column).type
                    has_path = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
                    rows = read_bounded(shard, [*wanted, *([f"{column}.path"] if has_path else [])])
                    cells = rows[column].to_pylist() if has_path else [None] * pq.read_metadata(shard).num_rows
                    paths += [cell and cell["path"] for cell in cells]
                    some = rows.select(wanted).to_pandas(ignore_metadata=True).reindex(range(len(cells)))
                found.append(some.assign(**{SHARD: str(shard)}))
                start = len(numbers) - first
                numbers += [f"{names.get(split, split)}/{row}" for row in range(start, start + len(cells))]
        table = pd.concat(found, ignore_index=True)
        return table.assign(id=stored_ids(paths, table.get("id"), numbers, root))

    def parts(self, size: int = 0) -> Iterator[ShardPart]:
        ids = self._rows.groupby(SHARD, sort=False)["id"].agg(list)
        for index, (shard, some) in enumerate(ids.items()):
            path = Path(str(shard))
            yield ShardPart(index, f"{index:05d}-{path.stem}", path, self._fields[path], some, self._roots)

    def columns(self) -> pd.DataFrame:
        return self._rows.drop(columns=SHARD)


def stored_ids(paths: Sequence[str | None], own: Any, numbers: Sequence[str], root: str) -> list[str]:
    """Ids of the images of a data set, the same in every command.

    File names are taken if all are known and differ, else the column `id` if all are filled and differ, else numbers.

    Args:
        paths: of the files that the images came from, None where unknown; a name is relative to `root`, or without
            folders where the file is elsewhere.
        own: column `id`, or None.
        numbers: positions, such as `train/17`.
        root: path of the data set.
    """
    names = [_name_of_file(path, root) if path else None for path in paths]
    for found in (names, [] if own is None else list(own)):
        is_text = all(isinstance(name, Hashable) for name in found)  # and no list
        if found and is_text and len(set(found)) == len(found) and not pd.isna(pd.Series(found, dtype=object)).any():
            return [as_utf8(str(name)) for name in found]
    return list(numbers)


def _name_of_file(path: str, root: str) -> str:
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else Path(path).name


def as_utf8(name: str) -> str:
    """A file's name as text that can be stored: bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _as_it_is(image: str | bytes) -> str | bytes:
    return image
