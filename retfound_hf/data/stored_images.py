"""Images of data sets that `datasets` reads, and whatever else `prepare_images` takes."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from ..errors import BadArgumentError, BadDataError, UnreadableImageError, join_names, nearest, one_line
from ..files import file_stamp
from ..hub_access import look_up_data_set
from . import tables
from .image_sources import (
    ACCEPTED,
    BATCH,
    FolderSource,
    ImageRef,
    ImageSource,
    TableSource,
    as_utf8,
)
from .parquet import check_conversion, converted, holds_images, is_image_type, placed, roots_of
from .tables import TABLE_SUFFIXES, check_columns

if TYPE_CHECKING:
    import datasets

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
    if not path.exists() and (path.is_absolute() or path.suffix.lower() in TABLE_SUFFIXES):
        raise BadDataError(f"{source} does not exist; give {ACCEPTED}", source=source)
    return DatasetSource(source, split, image_column, keep_columns, image_root)


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
            loaded = converted(data)
        elif any(os.path.isfile(os.path.join(data, name)) for name in SAVED):
            loaded = datasets.load_from_disk(data)
        else:
            check_conversion(datasets.load_dataset_builder(data))
            loaded = datasets.load_dataset(data)
    except BadDataError:
        raise
    except Exception as error:  # loading runs over the network and through many readers, each with its own errors
        where = "holds nothing that datasets can read" if os.path.exists(data) else "is neither here nor on the Hub"
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


def _is_dataset(folder: Path, image_column: str) -> bool:
    if any((folder / name).is_file() for name in SAVED):
        return True
    shards = chain(folder.glob("*.parquet"), folder.glob("*/*.parquet"))
    return any(holds_images(path, image_column) for path in shards)


def _unfit(option: str, value: Any, reason: str) -> BadArgumentError:
    return BadArgumentError(f"`{option}={value}` {reason}", field=option, value=value)
