"""Images without labels: a folder, a table of paths, parquet shards or a data set."""

import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ..errors import RetFoundError, join_names, nearest
from ..images.reading import IMAGE_SUFFIXES, find_images
from .checks import check_columns
from .hf_datasets import find_image_column, load_splits
from .tables import TABLE_SUFFIXES, holds_images, read_table

ACCEPTED = "a folder of images, a folder of parquet shards, or a CSV or parquet table with a column image"


@dataclass(frozen=True)
class Part:
    """Some images that are worked on together.

    Args:
        name: of the part, unique and fit for a file name.
        identity: what tells whether the part is still the same: paths, sizes and times of change.
        ids, paths: of the images; empty for a shard, whose content `load` reads.
        shard: parquet file with a column `image` (bytes and path).
    """

    name: str
    identity: tuple
    ids: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    shard: Path | None = None

    def load(self) -> tuple[list[str], Sequence[str | bytes]]:
        """Ids and sources (paths, or encoded bytes) of the images."""
        if self.shard is None:
            return list(self.ids), self.paths
        table = pq.read_table(self.shard)
        images = table["image"].to_pylist()
        if "id" in table.column_names:
            ids = [str(value) for value in table["id"].to_pylist()]
        else:
            ids = [image["path"] or f"{self.name}/{index}" for index, image in enumerate(images)]
        return ids, [image["bytes"] for image in images]


def list_parts(data: str, part_size: int = 1000) -> list[Part]:
    """The images of `data` in a fixed order, cut into parts; a shard is a part of its own.

    Args:
        data: a folder of images (searched recursively), a folder of parquet shards, or a table with a column `image`
            and optionally `id`; relative paths start at the table's folder.

    Raises:
        RetFoundError: nothing there, or nothing that is an image.
    """
    path = Path(data)
    if path.is_dir():
        shards = find_shards(path)
        if shards and all(holds_images(shard, "image") for shard in shards):
            return [_shard_part(index, shard) for index, shard in enumerate(shards)]
        images = find_images(path)
        ids, paths = [str(image.relative_to(path).as_posix()) for image in images], [str(image) for image in images]
    elif path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        if holds_images(path, "image"):
            return [_shard_part(0, path)]
        ids, paths = _table_images(path)
    else:
        raise RetFoundError(f"data {data} does not exist or is no table; give {ACCEPTED}")
    if not paths:
        raise RetFoundError(f"{data} holds no image; give {ACCEPTED}")
    parts = []
    for index, start in enumerate(range(0, len(paths), part_size)):
        some = slice(start, start + part_size)
        identity = tuple(_identity(image) for image in paths[some])
        parts.append(Part(f"{index:05d}", identity, tuple(ids[some]), tuple(paths[some])))
    return parts


def find_shards(folder: Path) -> list[Path]:
    """The parquet files under `folder`, sorted; hidden ones are what a killed `prepare_images` left half-written."""
    return sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))


def _table_images(path: Path) -> tuple[list[str], list[str]]:
    table = read_table(path, ())
    if "image" not in table:
        raise RetFoundError(f"{path} has no column image; it has {', '.join(map(str, table.columns))}")
    paths = [str(path.parent / str(image)) for image in table["image"]]
    return [str(name) for name in table["id" if "id" in table else "image"]], paths


def _shard_part(index: int, shard: Path) -> Part:
    return Part(f"{index:05d}-{shard.stem}", _identity(str(shard)), shard=shard)


def identities(folder: str | Path) -> list[tuple[str, int, int]]:
    """Path, size and time of change of every file directly in `folder`; empty where that is no folder."""
    return [_identity(str(path)) for path in sorted(Path(folder).glob("*")) if path.is_file()]


def _identity(path: str) -> tuple[str, int, int]:
    try:
        facts = Path(path).stat()
    except OSError:
        return path, 0, 0
    return path, facts.st_size, facts.st_mtime_ns


if TYPE_CHECKING:
    import datasets

ITEMS_ACCEPTED = (
    "a folder of images, a CSV or parquet table with a column image, a folder of parquet shards, a folder that "
    "save_to_disk wrote, or the id of a data set on the Hugging Face Hub"
)


@dataclass(frozen=True)
class Item:
    """One image of a source, not read yet.

    Attributes:
        id: the name under which it is kept.
        ref: what the source's `opener` finds it by; small, since it travels to the worker processes.
        kept: values of the columns that are carried along, in the order of `Source.kept_features`.
    """

    id: str
    ref: Any
    kept: tuple[Any, ...] = ()


class Source:
    """A place that images come from. A subclass is all that another kind of source needs (volumes, archives).

    Attributes:
        name: absolute path, or Hub id.
        kept_features: `datasets` features of the columns that are carried along.
    """

    name: str
    kept_features: "dict[str, Any] | datasets.Features"

    def __len__(self) -> int:
        raise NotImplementedError

    def items(self) -> Iterator[Item]:
        """All items, always in the same order; never more than one folder or batch of them in memory."""
        raise NotImplementedError

    def stamp(self, item: Item) -> Any:
        """What changes when the content of the item does; its repr is hashed."""
        raise NotImplementedError

    def opener(self) -> Callable[[Any], str | bytes]:
        """A function that can be sent to another process and turns a `ref` into a path or the bytes of a file."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unit:
    """The source's images `[index * size, (index + 1) * size)`, which become one shard."""

    index: int
    items: list[Item] = field(repr=False)

    @property
    def name(self) -> str:
        return f"train-{self.index:05d}"


def cut_units(source: Source, size: int) -> Iterator[Unit]:
    """The source in units of `size` images, the last of which may be smaller."""
    items = source.items()
    index = 0
    while some := list(islice(items, size)):
        yield Unit(index, some)
        index += 1


def identity(source: Source, unit: Unit) -> str:
    """Digest of the names, stamps and carried values of a unit's images: another one means to prepare it anew."""
    digest = hashlib.blake2b(digest_size=16)
    for item in unit.items:
        digest.update(repr((item.id, source.stamp(item), item.kept)).encode())
    return digest.hexdigest()


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
            raise RetFoundError(f"{folder} holds no image; give {ITEMS_ACCEPTED}")

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


if TYPE_CHECKING:
    import datasets


class StoredSource(Source):
    """The rows of one or all splits of a data set, memory-mapped.

    Named by the column `id`; or the path of an image's file within the data set's folder; or split, row and the name
    of the file that the image was, such as `train/17/eye.jpg`.
    """

    def __init__(self, data: str, split: str | None, image_column: str, keep_columns: Sequence[str]):
        import datasets

        self.name = str(Path(data).absolute()) if os.path.exists(data) else data
        splits = load_splits(data, ITEMS_ACCEPTED)
        if split is not None and split not in splits:
            raise RetFoundError(f"{data} has no split {split!r}; it has {join_names(splits)}{nearest(split, splits)}")
        splits = {name: part for name, part in splits.items() if split in (None, name)}
        first = next(iter(splits.values()))
        for column in keep_columns:
            if column not in first.features:
                columns = first.column_names
                raise RetFoundError(
                    f"{data} has no column {column!r}; its columns are {join_names(columns, 20)}; name the right ones "
                    f"with --keep_columns{nearest(column, columns)}"
                )
        self.kept_features = datasets.Features({name: first.features[name] for name in keep_columns})
        self._image = find_image_column(first, image_column, data)
        self._splits = {
            name: part.cast_column(self._image, datasets.Image(decode=False)) for name, part in splits.items()
        }
        self._fingerprints = [part._fingerprint for part in splits.values()]

    def __len__(self) -> int:
        return sum(part.num_rows for part in self._splits.values())

    def items(self) -> Iterator[Item]:
        for number, (split, part) in enumerate(self._splits.items()):
            wanted = [self._image, *(["id"] if "id" in part.column_names else []), *self.kept_features]
            rows = part.select_columns(list(dict.fromkeys(wanted))).with_format("arrow")
            for start in range(0, part.num_rows, BATCH):
                batch = rows[start : start + BATCH]
                images = batch[self._image]
                paths = pc.struct_field(images, "path").to_pylist()
                external = pc.is_null(pc.struct_field(images, "bytes")).to_pylist()
                names = batch["id"].to_pylist() if "id" in wanted else [None] * len(paths)
                kept = zip(*(batch[name].to_pylist() for name in self.kept_features), strict=True)
                values = list(kept) or [()] * len(paths)
                columns = zip(paths, external, names, values, strict=True)
                for row, (path, is_external, name, some) in enumerate(columns, start):
                    name = self._fallback_name(split, row, path) if name is None else as_utf8(str(name))
                    yield Item(name, (number, row, path if is_external else None), some)

    def stamp(self, item: Item) -> Any:
        number, _, path = item.ref
        return self._fingerprints[number], file_stamp(path) if path else None

    def opener(self) -> Callable[[tuple[int, int, str | None]], str | bytes]:
        return RowOpener([part.select_columns(self._image) for part in self._splits.values()], self._image)

    def _fallback_name(self, split: str, row: int, path: str | None) -> str:
        if path and path.startswith(self.name + "/"):
            return as_utf8(path.removeprefix(self.name + "/"))
        return as_utf8("/".join([split, str(row), *([os.path.basename(path)] if path else [])]))


class RowOpener:
    """Reads the bytes of an image from its data set, which a worker process maps into memory for itself."""

    def __init__(self, splits: "list[datasets.Dataset]", image_column: str):
        self.splits = splits
        self.image_column = image_column

    def __call__(self, ref: tuple[int, int, str | None]) -> str | bytes:
        number, row, _ = ref
        image = self.splits[number][row][self.image_column]
        if image is None:
            raise RetFoundError("the row holds no image")
        return image["path"] if image["bytes"] is None else image["bytes"]


SAVED = ("dataset_dict.json", "state.json")


def open_source(
    source: str, *, split: str | None = None, image_column: str = "image", keep_columns: Sequence[str] = ()
) -> Source:
    """The source that `source` names: a folder tree of images, a table of paths, or what `datasets` reads.

    Args:
        split: of a data set; all of its splits, one after the other, by default.
        image_column: of a table or a data set.
        keep_columns: columns of a table or a data set that are carried along.

    Raises:
        RetFoundError: nothing there, no image in it, or an option that this kind of source does not have.
    """
    for name in keep_columns:
        if name in ("image", "id", "hash", image_column):
            raise RetFoundError(f"--keep_columns {name}: the shards have a column of this name anyway; leave it out")
    path = Path(source)
    if path.is_dir() and not _is_stored(path, image_column):
        if keep_columns or split:
            option = "--keep_columns" if keep_columns else "--split"
            raise RetFoundError(f"{option} does not apply to {source}, a folder of image files; give a table of them")
        return FolderSource(path)
    if path.is_file() and not holds_images(path, image_column):
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise RetFoundError(f"{source} is no table ({', '.join(TABLE_SUFFIXES)}); give {ITEMS_ACCEPTED}")
        if split:
            raise RetFoundError(f"--split does not apply to {source}, a table; keep the rows that you want in it")
        return TableSource(path, image_column, keep_columns)
    if not path.exists() and (path.is_absolute() or path.suffix.lower() in TABLE_SUFFIXES):
        raise RetFoundError(f"{source} does not exist; give {ITEMS_ACCEPTED}")

    return StoredSource(source, split, image_column, keep_columns)


def _is_stored(folder: Path, image_column: str) -> bool:
    if any((folder / name).is_file() for name in SAVED):
        return True
    shards = chain(folder.glob("*.parquet"), folder.glob("*/*.parquet"))
    return any(holds_images(path, image_column) for path in shards)
