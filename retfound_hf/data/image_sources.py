"""Images from anywhere: folders, tables, parquet shards and data sets as lazy lists of references to images."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from ..errors import BadArgumentError, BadDataError, UnreadableImageError, join_names, nearest, one_line
from ..hub_access import look_up_data_set
from ..images.reading import IMAGE_SUFFIXES, walk_images
from . import tables
from .tables import TABLE_SUFFIXES, check_columns, check_filled, holds_images, read_table, table_images

if TYPE_CHECKING:
    import datasets

ACCEPTED_FILES = "an image, a folder of images or of parquet shards, or a CSV or parquet table with a column image"
ACCEPTED = (
    "a folder of images, a CSV or parquet table with a column image, a folder of parquet shards, a folder that "
    "save_to_disk wrote, or the id of a data set on the Hugging Face Hub"
)
BATCH = 1000  # rows that are listed at once
SAVED = ("dataset_dict.json", "state.json")  # of `save_to_disk`


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
    """A parquet file with a column `image` (bytes and path); `refs` reads it on every access."""

    index: int
    name: str
    path: Path

    @property
    def refs(self) -> list[ImageRef]:
        table = pq.read_table(self.path)
        images: list[Any] = [{"bytes": c} if isinstance(c, bytes) else c for c in table["image"].to_pylist()]
        if "id" in table.column_names:
            ids = [str(value) for value in table["id"].to_pylist()]
        else:
            ids = [image.get("path") or f"{self.name}/{index}" for index, image in enumerate(images)]
        return [ImageRef(name, self._file(image)) for name, image in zip(ids, images, strict=True)]

    def _file(self, image: dict[str, Any]) -> str | bytes:
        near = self.path.parent / (image.get("path") or "")
        return image["bytes"] or (str(near) if near.is_file() else image.get("path"))

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
        """What changes when the content of the image does; its repr is hashed."""
        return file_stamp(ref.image)

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
    """Image files under a folder, named by their paths within it."""

    def __init__(self, folder: str, accepted: str = ACCEPTED):
        self.name = folder
        if next(walk_images(folder), None) is None:
            raise BadDataError(f"{folder} holds no image; give {accepted}", source=folder)

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _count(self) -> int:
        # At the price of a second listing: hours of work deserve a progress bar that knows its end.
        return sum(1 for _ in tqdm(walk_images(self.name), desc="Listing", unit="image", leave=False))

    def __iter__(self) -> Iterator[ImageRef]:
        for path in walk_images(self.name):
            yield ImageRef(as_utf8(path), f"{self.name}/{path}")


class TableSource(ImageSource):
    """Paths in a column of a table, named by its column `id`, or else by the paths.

    Args:
        path: of the table; relative paths start at its folder.
        image_column: holds the paths.
        keep_columns: carried along.
        as_written: name images by their paths as the table has them, instead of normalised and relative to it.
    """

    def __init__(
        self, path: str, image_column: str = "image", keep_columns: Sequence[str] = (), as_written: bool = False
    ):
        self.name = path
        table = read_table(Path(path), ("id", *keep_columns))
        check_columns(table, [image_column], path, "image_column")
        check_columns(table, keep_columns, path, "keep_columns")
        named = "id" in table.columns and image_column != "id"
        for column in (image_column, *(["id"] if named else [])):
            check_filled(table, column, path)
        if as_written:
            paths = [os.path.join(os.path.dirname(path), str(name)) for name in table[image_column]]
            placed = table.assign(id=table["id" if named else image_column], image=paths)
        else:
            placed = table_images(table, path, image_column)
            placed = placed.assign(id=table["id"]) if named else placed
        placed = placed.assign(image=tables.find_files(placed["image"], path))
        try:
            kept = pa.Table.from_pandas(table[list(keep_columns)], preserve_index=False).replace_schema_metadata(None)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise BadDataError(f"{path} has a column with values of several types: {error}", source=path) from error
        if keep_columns:
            import datasets

            self.features = datasets.Features.from_arrow_schema(kept.schema)
        # As Arrow, which takes less memory than pandas' strings.
        texts = {name: pa.array(placed[name].astype(str), pa.string()) for name in ("id", "image")}
        self._table = pa.table({**texts, **{f"kept_{name}": kept[name] for name in keep_columns}})

    def __len__(self) -> int:
        return self._table.num_rows

    def __iter__(self) -> Iterator[ImageRef]:
        for batch in self._table.to_batches(max_chunksize=BATCH):
            for name, path, *facts in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield ImageRef(name, path, dict(zip(self.features, facts, strict=True)))


class ListSource(ImageSource):
    """Images given one by one: paths, encoded bytes or `PIL.Image`s, named by `ids`, their paths or their places."""

    name = "the list"

    def __init__(self, images: Sequence[Any], ids: Sequence[str] | None = None):
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
    """Parquet files that hold images, read one by one; named by their column `id`, or by the images' own paths."""

    def __init__(self, name: str, shards: Sequence[Path]):
        self.name, self.shards = name, shards

    def __len__(self) -> int:
        return sum(pq.read_metadata(shard).num_rows for shard in self.shards)

    def __iter__(self) -> Iterator[ImageRef]:
        for part in self.parts():
            yield from part.refs

    def parts(self, size: int = 0) -> Iterator[ShardPart]:
        for index, shard in enumerate(self.shards):
            yield ShardPart(index, f"{index:05d}-{shard.stem}", shard)


class DatasetSource(ImageSource):
    """Rows of one or all splits of a data set, memory-mapped.

    Named by the column `id`; or the path of an image's file within the data set's folder; or split, row and the name
    of the file that the image was, such as `train/17/eye.jpg`.
    """

    def __init__(self, data: str, split: str | None, image_column: str, keep_columns: Sequence[str]):
        import datasets

        self.name = os.path.abspath(data) if os.path.exists(data) else data
        splits = load_splits(data, ACCEPTED)
        if split is not None and split not in splits:
            message = f"{data} has no split {split!r}; it has {join_names(splits)}{nearest(split, splits)}"
            raise BadArgumentError(message, field="split", value=split, accepted=splits)
        splits = {name: part for name, part in splits.items() if split in (None, name)}
        first = next(iter(splits.values()))
        check_columns(first.features, keep_columns, data, "keep_columns")
        self.features = datasets.Features({name: first.features[name] for name in keep_columns})
        self._column = find_image_column(first, image_column, data)
        encoded = datasets.Image(decode=False)
        self._splits = {name: part.cast_column(self._column, encoded) for name, part in splits.items()}
        self._fingerprints = [part._fingerprint for part in splits.values()]

    def __len__(self) -> int:
        return sum(part.num_rows for part in self._splits.values())

    def __iter__(self) -> Iterator[ImageRef]:
        for number, (split, part) in enumerate(self._splits.items()):
            wanted = [self._column, *(["id"] if "id" in part.column_names else []), *self.features]
            rows = part.select_columns(list(dict.fromkeys(wanted))).with_format("arrow")
            for start in range(0, part.num_rows, BATCH):
                batch = rows[start : start + BATCH]
                images = batch[self._column]
                paths = pc.struct_field(images, "path").to_pylist()
                external = pc.is_null(pc.struct_field(images, "bytes")).to_pylist()
                names = batch["id"].to_pylist() if "id" in wanted else [None] * len(paths)
                facts = batch.select(list(self.features)).to_pylist() if self.features else [{}] * len(paths)
                columns = zip(paths, external, names, facts, strict=True)
                for row, (path, is_external, name, some) in enumerate(columns, start):
                    name = self._fallback_name(split, row, path) if name is None else str(name)
                    yield ImageRef(as_utf8(name), (number, row, path if is_external else None), some)

    def stamp(self, ref: ImageRef) -> Any:
        number, _, path = ref.image
        return self._fingerprints[number], file_stamp(path) if path else None

    def opener(self) -> Callable[[tuple[int, int, str | None]], str | bytes]:
        return RowOpener([part.select_columns(self._column) for part in self._splits.values()], self._column)

    def _fallback_name(self, split: str, row: int, path: str | None) -> str:
        if path and path.startswith(self.name + "/"):
            return path.removeprefix(self.name + "/")
        return "/".join([split, str(row), *([os.path.basename(path)] if path else [])])


@dataclass
class RowOpener:
    """Reads an image from its data set, which each worker process maps into memory for itself."""

    splits: "list[datasets.Dataset]"
    image_column: str

    def __call__(self, place: tuple[int, int, str | None]) -> str | bytes:
        number, row, _ = place
        image = self.splits[number][row][self.image_column]
        if image is None:
            raise UnreadableImageError("the row holds no image")
        return image["path"] if image["bytes"] is None else image["bytes"]


def open_source(
    source: str, *, split: str | None = None, image_column: str = "image", keep_columns: Sequence[str] = ()
) -> ImageSource:
    """A folder tree of images, a table of paths, or whatever `datasets` reads.

    Args:
        source: path or Hub id.
        split: of a data set; all of its splits, one after the other, by default.
        image_column: of a table or a data set.
        keep_columns: columns of a table or a data set that are carried along.

    Raises:
        BadDataError: nothing there, or no image in it.
        BadArgumentError: an option that this kind of source does not have.
    """
    for name in keep_columns:
        if name in ("image", "id", "hash", image_column):
            raise _unfit("keep_columns", name, "the shards have a column of this name anyway; leave it out")
    path = Path(source)
    if path.is_dir() and not _is_dataset(path, image_column):
        for option, value in (("keep_columns", list(keep_columns)), ("split", split)):
            if value:
                raise _unfit(option, value, f"does not apply to {source}, a folder of image files; give a table")
        return FolderSource(os.path.abspath(source))
    if path.is_file() and not holds_images(path, image_column):
        tables.check_suffix(path, ACCEPTED)
        if split:
            raise _unfit("split", split, f"does not apply to {source}, a table; keep the rows that you want in it")
        return TableSource(os.path.abspath(source), image_column, keep_columns)
    if not path.exists() and (path.is_absolute() or path.suffix.lower() in TABLE_SUFFIXES):
        raise BadDataError(f"{source} does not exist; give {ACCEPTED}", source=source)
    return DatasetSource(source, split, image_column, keep_columns)


def open_files(data: str | Path | Sequence[Any]) -> ImageSource:
    """An image, a folder of images or parquet shards, a table, or a list; read without the cache of `datasets`.

    Raises:
        BadDataError: nothing there, or nothing that is an image.
    """
    if not isinstance(data, (str, Path)):
        return ListSource(data)
    path, data = Path(data), str(data)
    if path.is_dir():
        shards = find_shards(path)
        if shards and all(holds_images(shard, "image") for shard in shards):
            return ShardSource(data, shards)
        return FolderSource(str(path), ACCEPTED_FILES)
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        return ShardSource(data, [path]) if holds_images(path, "image") else TableSource(data, as_written=True)
    if path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES):
        return ListSource([data], [path.name])
    raise BadDataError(f"data {data} does not exist, or holds no image; give {ACCEPTED_FILES}", source=data)


def find_shards(folder: Path) -> list[Path]:
    """Parquet files under `folder`, sorted; hidden ones are what a killed `prepare_images` left half-written."""
    return sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))


def load_splits(data: str, accepted: str) -> dict[str, "datasets.Dataset"]:
    """Every split of a data set, memory-mapped.

    Args:
        data: Hub id, a parquet file, a folder that `datasets` reads, or one that `save_to_disk` wrote.
        accepted: for the error, what may be given.

    Raises:
        BadDataError: nothing there that `datasets` can read.
    """
    import datasets

    try:
        if not os.path.exists(data):
            look_up_data_set(data)
        if os.path.isfile(data):
            loaded = datasets.Dataset.from_parquet(data)
        elif any(os.path.isfile(os.path.join(data, name)) for name in SAVED):
            loaded = datasets.load_from_disk(data)
        else:
            loaded = datasets.load_dataset(data)
    except Exception as error:  # loading runs over the network and through many readers, each with its own errors
        where = "holds nothing that datasets can read" if os.path.exists(data) else "is neither here nor on the Hub"
        raise BadDataError(f"data {data} {where} ({one_line(error)}); give {accepted}", source=data) from error
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)


def find_image_column(part: "datasets.Dataset", wanted: str, data: str) -> str:
    """`wanted`, or the only column of type `datasets.Image`."""
    import datasets

    columns = [name for name, feature in part.features.items() if isinstance(feature, datasets.Image)]
    if isinstance(kind := part.features.get(wanted), datasets.Value) and kind.dtype.endswith(("binary", "string")):
        columns.append(wanted)
    if wanted in columns:
        return wanted
    if len(columns) == 1:
        return columns[0]
    raise BadDataError(
        f"{data} has no image column {wanted!r}; its columns are {join_names(part.column_names, 20)}, of which "
        f"{join_names(columns) or 'none'} hold images; name the right one with `image_column`",
        source=data,
    )


def identities(folder: str | Path) -> list[tuple[str, int, int]]:
    """Path, size and time of change of every file directly in `folder`; empty where that is not a folder."""
    files = [str(path) for path in sorted(Path(folder).glob("*")) if path.is_file()]
    return [(path, *(file_stamp(path) or (0, 0))) for path in files]


def file_stamp(path: str | Path) -> tuple[int, int] | None:
    """Size and time of change (ns); None where there is no file."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def as_utf8(name: str) -> str:
    """A file's name as text that can be stored: bytes that are not UTF-8 become question marks."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _as_it_is(image: str | bytes) -> str | bytes:
    return image


def _is_dataset(folder: Path, image_column: str) -> bool:
    if any((folder / name).is_file() for name in SAVED):
        return True
    shards = chain(folder.glob("*.parquet"), folder.glob("*/*.parquet"))
    return any(holds_images(path, image_column) for path in shards)


def _unfit(option: str, value: Any, reason: str) -> BadArgumentError:
    return BadArgumentError(f"`{option}={value}` {reason}", field=option, value=value)
