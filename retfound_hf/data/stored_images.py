"""Images of data sets that `datasets` reads, and whatever else the commands take."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.compute as pc

from ..errors import BadArgumentError, BadDataError, RetFoundError, UnreadableImageError, join_names, nearest, one_line
from ..files import file_stamp, is_remote
from ..hub_access import look_up_data_set
from ..images.reading import is_image_file, walk_images
from . import tables
from .image_sources import (
    ACCEPTED,
    BATCH,
    FolderSource,
    ImageRef,
    ImageSource,
    ListSource,
    ShardSource,
    TableSource,
    as_utf8,
    stored_ids,
)
from .parquet import check_conversion, converted, find_shards, holds_images, is_image_type, placed, roots_of
from .remote import check_address, list_remote
from .tables import TABLE_SUFFIXES, check_columns, splits_of, warn_of_passed_over

if TYPE_CHECKING:
    import datasets

ACCEPTED_FILES = (
    "an image, a folder of images or of parquet shards (also s3://, gs://, hf://), a CSV or parquet table with a "
    "column image, or the id of a data set on the Hugging Face Hub"
)
SAVED = ("dataset_dict.json", "state.json")  # of `save_to_disk`


class DatasetSource(ImageSource):
    """Rows of one or all splits of a data set, memory-mapped.

    Named by the column `id`; or the path of an image's file within the data set's folder; or split, row and the name
    of the file that the image was, such as `train/17/eye.jpg`.
    """

    def __init__(
        self, data: str, split: str | None, image_column: str, keep_columns: Sequence[str],
        image_root: str | None = None,
    ):  # fmt: skip
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
        self._roots = roots_of(self.name, image_root)
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
        try:
            return self._fingerprints[number], file_stamp(placed(path, self._roots)) if path else None
        except UnreadableImageError:
            return self._fingerprints[number], None

    def opener(self) -> Callable[[tuple[int, int, str | None]], str | bytes]:
        parts = [part.select_columns(self._column) for part in self._splits.values()]
        return RowOpener(parts, self._column, self._roots)

    def _fallback_name(self, split: str, row: int, path: str | None) -> str:
        if path and path.startswith(self.name + "/"):
            return path.removeprefix(self.name + "/")
        return "/".join([split, str(row), *([os.path.basename(path)] if path else [])])


class UnlabelledDataset(DatasetSource):
    """Every split, with the ids and columns of the same set read as a labelled one; `read_image` opens the images."""

    def __init__(self, data: str, image_column: str = "image", image_root: str | None = None):
        super().__init__(data, None, image_column, (), image_root)

    def __iter__(self) -> Iterator[ImageRef]:
        opened = self.opener()
        for ref, name in zip(super().__iter__(), self._rows["id"], strict=True):
            yield ImageRef(name, partial(opened, ref.image))

    def stamp(self, ref: ImageRef) -> Any:
        return super().stamp(ref._replace(image=ref.image.args[0]))

    def columns(self) -> pd.DataFrame:
        return self._rows

    @cached_property
    def _rows(self) -> pd.DataFrame:
        found, paths, numbers, names = [], [], [], splits_of(self._splits)
        for split, part in self._splits.items():
            rows = part.with_format("arrow")[:]
            paths += pc.struct_field(rows[self._column], "path").to_pylist()
            numbers += [f"{names.get(split, split)}/{row}" for row in range(len(rows))]
            found.append(rows.drop_columns([self._column]).to_pandas().reindex(range(len(rows))))
        table = pd.concat(found, ignore_index=True).rename(columns=str.strip)
        return table.assign(id=stored_ids(paths, table.get("id"), numbers, self.name))


@dataclass
class RowOpener:
    """Reads an image from its data set, which each worker process maps into memory for itself."""

    splits: "list[datasets.Dataset]"
    image_column: str
    roots: Sequence[str]

    def __call__(self, place: tuple[int, int, str | None]) -> str | bytes:
        number, row, _ = place
        image = self.splits[number][row][self.image_column]
        if image is None:
            raise UnreadableImageError("the row holds no image")
        return placed(image["path"] or "", self.roots) if image["bytes"] is None else image["bytes"]


def open_source(
    source: str, *, split: str | None = None, image_column: str = "image", keep_columns: Sequence[str] = (),
    image_root: str | None = None,
) -> ImageSource:  # fmt: skip
    """A folder tree of images, a table of paths, or whatever `datasets` reads.

    Args:
        source: path or Hub id.
        split: of a data set; all of its splits, one after the other, by default.
        image_column: of a table or a data set.
        keep_columns: columns of a table or a data set that are carried along.
        image_root: folder at which the relative paths of a table or data set start; by default its own.

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
        return TableSource(os.path.abspath(source), image_column, image_root, keep_columns, by_id=True)
    if not path.exists() and (path.is_absolute() or path.suffix.lower() in TABLE_SUFFIXES) and not is_remote(source):
        raise BadDataError(f"{source} does not exist; give {ACCEPTED}", source=source)
    return DatasetSource(source, split, image_column, keep_columns, image_root)


def open_files(
    data: str | Path | Sequence[Any], image_column: str = "image", image_root: str | None = None
) -> ImageSource:
    """Images that need no labels; files of this machine are read without the cache of `datasets`.

    Ids are those that the same data have as a labelled set.

    Args:
        data: an image, a folder of images or parquet shards, a table, a data set on the Hub or of `save_to_disk`,
            shards in an object store, or a list of paths, bytes or `PIL.Image`s.
        image_column: of a table or of shards.
        image_root: folder at which the relative paths of a table or data set start; by default its own.

    Raises:
        BadDataError: nothing there, or nothing that is an image.
    """
    if not isinstance(data, (str, Path)):
        return ListSource(data)
    path, data = Path(data), str(data)
    if is_remote(data) or is_hub_id(data) or _is_saved(path):
        return UnlabelledDataset(data, image_column, image_root)
    if path.is_dir():
        shards = find_shards(path)
        if shards and all(holds_images(shard, image_column) for shard in shards):
            warn_of_passed_over(data, list(walk_images(data)))
            return ShardSource(data, shards, image_column, image_root)
        return FolderSource(str(path), ACCEPTED_FILES)
    if path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        if holds_images(path, image_column):
            return ShardSource(data, [path], image_column, image_root)
        return TableSource(os.path.abspath(data), image_column, image_root)
    if path.is_file() and is_image_file(path):
        return ListSource([data], [path.name])
    if path.is_file():
        tables.check_suffix(path, ACCEPTED_FILES)
    raise BadDataError(f"data {data} does not exist; give {ACCEPTED_FILES}", source=data)


def is_hub_id(data: str) -> bool:
    """Whether `data` names a data set on the Hub, and no file or folder of this machine."""
    is_table = data.lower().endswith(TABLE_SUFFIXES)
    return not is_table and not os.path.exists(data) and re.fullmatch(r"\w[\w.-]*/[\w.-]+", data) is not None


def load_splits(data: str, accepted: str) -> dict[str, "datasets.Dataset"]:
    """Every split of a data set, memory-mapped.

    Args:
        data: Hub id, a parquet file, a folder that `datasets` reads, one that `save_to_disk` wrote, or the address of
            parquet files in an object store, which are copied into the cache of `datasets`.
        accepted: for the error, what may be given.

    Raises:
        BadArgumentError: an address with credentials in it, or of an unknown kind.
        BadDataError: nothing there that `datasets` can read.
    """
    import datasets

    try:
        if is_remote(data):
            check_address(data, "data")
            folder, members = list_remote(data, "data")
            if not members:
                raise BadDataError(f"data {data} holds no parquet file; give a folder of shards", source=data)
            loaded = converted([f"{folder}/{member}" for member in members])
        elif os.path.isfile(data):
            loaded = converted(data)
        elif _is_saved(Path(data)):
            loaded = datasets.load_from_disk(data)
        else:
            if not os.path.exists(data):
                look_up_data_set(data)
            check_conversion(datasets.load_dataset_builder(data))
            loaded = datasets.load_dataset(data)
    except RetFoundError:
        raise
    except Exception as error:  # loading runs over the network and through many readers, each with its own errors
        is_there = os.path.exists(data) or is_remote(data)
        where = "holds nothing that datasets can read" if is_there else "is neither here nor on the Hub"
        raise BadDataError(f"data {data} {where} ({one_line(error)}); give {accepted}", source=data) from error
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)


def find_image_column(part: "datasets.Dataset", wanted: str, data: str) -> str:
    """`wanted`, or the only column of type `datasets.Image`."""
    import datasets

    columns = [name for name, feature in part.features.items() if isinstance(feature, datasets.Image)]
    schema = part.features.arrow_schema
    columns += [
        name for name, kind in part.features.items()
        if isinstance(kind, (dict, datasets.Value)) and is_image_type(schema.field(name).type)
    ]  # fmt: skip
    if isinstance(kind := part.features.get(wanted), datasets.Value) and kind.dtype.endswith("string"):
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


def _is_saved(folder: Path) -> bool:
    return any((folder / name).is_file() for name in SAVED)


def _is_dataset(folder: Path, image_column: str) -> bool:
    if _is_saved(folder):
        return True
    shards = chain(folder.glob("*.parquet"), folder.glob("*/*.parquet"))
    return any(holds_images(path, image_column) for path in shards)


def _unfit(option: str, value: Any, reason: str) -> BadArgumentError:
    return BadArgumentError(f"`{option}={value}` {reason}", field=option, value=value)
