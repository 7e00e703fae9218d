"""Parquet files that hold images: recognising them, bounds on their size, their splits, and cells with images."""

import errno
import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BadDataError, RetFoundError, UnreadableImageError, one_line
from ..files import is_remote

if TYPE_CHECKING:
    import datasets

MOST_UNPACKED, MAX_RATIO = 2**29, 10  # bytes of a file that are not asked about, and ratio of the others
ROWS_AT_ONCE = 256  # at most
MOST_COLUMNS = 10_000
IMAGE_BYTES = (pa.types.is_binary, pa.types.is_large_binary)


@contextmanager
def parquet_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of reading a parquet file within the block into `BadDataError`."""
    try:
        yield
    except RetFoundError:
        raise
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        raise BadDataError(f"{path} cannot be read as a parquet table: {one_line(error)}", source=path) from error


def image_field(path: Path, wanted: str) -> str | None:
    """Column of a parquet file with the files' bytes, or what `datasets` writes for images: `wanted`, or the only one.

    None where there is no such column, as in a table of paths.
    """
    if path.suffix.lower() != ".parquet":
        return None
    with parquet_errors(path), pq.ParquetFile(path) as file:
        check_unpacked(path, path.stat().st_size, file.metadata)
        schema = file.schema_arrow
        found = [column.name for column in schema if is_image_type(column.type)]
        return wanted if wanted in found else found[0] if len(found) == 1 and wanted not in schema.names else None


def check_unpacked(name: str | Path, size: int, facts: pq.FileMetaData) -> None:
    """Raise `BadDataError` for a parquet file that would unpack to far more than it is, or has too many columns.

    Args:
        name: of the file, for the error.
        size: of the file in bytes.
        facts: its footer.
    """
    # Not column by column: pyarrow ends the process where a damaged footer has a column that does not exist.
    unpacked = sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups))
    if facts.num_columns > MOST_COLUMNS:
        raise BadDataError(f"{name} has more than {MOST_COLUMNS:,} columns; keep those that are used", source=name)
    if unpacked > most_unpacked(size) or facts.num_rows > size:
        message = f"{name} has {size:,} bytes and would unpack to {facts.num_rows:,} rows of {unpacked:,} bytes in all"
        raise BadDataError(message, source=name)


def most_unpacked(size: int) -> int:
    """Bytes to which a file of `size` bytes may unpack."""
    return max(MOST_UNPACKED, MAX_RATIO * size)


def bounded_batches(
    path: Path, columns: Sequence[str] | None = None, threads: bool = True
) -> Iterator[pa.RecordBatch]:
    """Rows of a parquet file, a few at a time; its footer does not tell how often a long value is repeated.

    Args:
        path: of the file.
        columns: all by default; part of a nested one as `image.path`.
        threads: whether pyarrow may use them.

    Raises:
        BadDataError: not a parquet file, or the rows take far more than the file does.
    """
    with parquet_errors(path), pq.ParquetFile(path) as file:
        size, unpacked = path.stat().st_size, 0
        check_unpacked(path, size, file.metadata)
        for number in range(file.num_row_groups):
            rows = MOST_UNPACKED // max(1, file.metadata.row_group(number).total_byte_size)
            batch_size = min(max(rows, 1), ROWS_AT_ONCE)
            for batch in file.iter_batches(batch_size, row_groups=[number], columns=columns, use_threads=threads):
                batch.validate(full=True)  # text that is not UTF-8 ends whoever uses it
                unpacked += sum(_size(column) for column in batch.columns)
                if unpacked > most_unpacked(size):
                    message = f"{path} has {size:,} bytes and unpacks to more than {unpacked:,}"
                    raise BadDataError(message, source=path)
                yield batch


def _size(column: pa.Array) -> int:
    """Bytes of some rows, without the values that all of them share."""
    return column.indices.nbytes if pa.types.is_dictionary(column.type) else column.nbytes


def read_bounded(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """`bounded_batches` as one table."""
    with parquet_errors(path):
        schema = pq.read_schema(path)
        batches = list(bounded_batches(path, columns))
        table = pa.Table.from_batches(batches) if batches else pq.read_table(path, columns=columns)
        return table.replace_schema_metadata(schema.metadata)


def check_conversion(builder: "datasets.DatasetBuilder") -> None:
    """Check parquet files that `datasets` is about to unpack into its cache; of those elsewhere the footer alone.

    Raises:
        BadDataError: they take far more than the files do.
    """
    if os.path.isdir(builder.cache_dir):
        return
    import fsspec

    for name in (str(name) for names in (builder.config.data_files or {}).values() for name in names):
        if name.endswith(".parquet") and is_remote(name):
            with fsspec.open(name) as file:
                check_unpacked(name, file.seek(0, os.SEEK_END), pq.read_metadata(file))
        elif name.endswith(".parquet"):
            deque(bounded_batches(Path(name)), maxlen=0)


def converted(files: str | list[str], cache_dir: str | None = None) -> "datasets.Dataset":
    """Parquet files as `datasets.Dataset.from_parquet` reads them, after `check_conversion`.

    `load_dataset` would count the load on a server.
    """
    from datasets.io.parquet import ParquetDatasetReader

    reader = ParquetDatasetReader(files, split="train", cache_dir=cache_dir)
    check_conversion(reader.builder)
    return reader.read()


def is_image_type(kind: pa.DataType) -> bool:
    """Whether a column of this type holds the bytes of files, or what `datasets` writes for images.

    Text in place of the bytes would be taken for a path.
    """
    if not pa.types.is_struct(kind):
        return any(each(kind) for each in IMAGE_BYTES)
    parts = {part.name: part.type for part in kind}
    content, path = parts.get("bytes"), parts.get("path", pa.string())
    has_bytes = content is not None and any(each(content) for each in (*IMAGE_BYTES, pa.types.is_null))
    return has_bytes and path in (pa.string(), pa.large_string(), pa.null())


def holds_images(path: Path, image_column: str) -> bool:
    """Whether `path` is a parquet file that holds images, see `image_field`."""
    return image_field(path, image_column) is not None


def splits_of_shards(name: str, shards: Sequence[Path]) -> dict[str, list[Path]]:
    """Shards by split, as `datasets` divides the files of a folder by their names."""
    import datasets

    if os.path.isfile(name):
        return {"train": list(shards)}
    try:
        listed = datasets.load_dataset_builder(name).config.data_files or {}
    except Exception:  # it reads cards, among others, with errors of every type
        listed = {}
    found = {str(split): [Path(file) for file in files] for split, files in listed.items()}
    place = {os.path.realpath(path): path for path in shards}
    known = {split: [place.pop(os.path.realpath(path)) for path in files if os.path.realpath(path) in place]
             for split, files in found.items()}  # fmt: skip
    known.setdefault("train", []).extend(place.values())
    return {split: files for split, files in known.items() if files}


def find_shards(folder: Path) -> list[Path]:
    """Parquet files under `folder`, sorted; hidden ones are what a killed `prepare_images` left half-written."""
    return sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))


def roots_of(data: str, image_root: str | None = None) -> tuple[str, ...]:
    """Folders of the files that a data set may name: `image_root`, then its own, or of a Hub id those of its copy."""
    given = (image_root,) if image_root else ()
    if os.path.exists(data):
        return (*given, os.path.dirname(os.path.abspath(data)) if os.path.isfile(data) else os.path.abspath(data))
    from datasets.config import DOWNLOADED_DATASETS_PATH
    from huggingface_hub.constants import HF_HUB_CACHE

    return (*given, os.path.join(HF_HUB_CACHE, "datasets--" + data.replace("/", "--")), str(DOWNLOADED_DATASETS_PATH))


def placed(path: str, roots: Sequence[str]) -> str:
    """Path of the image file that a data set names in place of bytes.

    A data set may come from anyone, and must not bring other files of this machine into shards or a model.

    Args:
        path: as stored; a relative one starts at the first of `roots` that has the file.
        roots: folders, see `roots_of`; the file must lie below one of them, with links resolved.

    Raises:
        UnreadableImageError: it lies elsewhere, or `path` is empty.
    """
    tops = tuple(os.path.realpath(root).rstrip("/") + "/" for root in roots)
    places = [os.path.join(root, path) for root in roots if path and "\0" not in path]
    if below := [place for place in places if os.path.realpath(place).startswith(tops)]:
        return next(filter(os.path.exists, below), below[0])
    outside = f"its file {path} is not below {roots[0]}; name the folder that holds it with `image_root`"
    reason = outside if path else "the row holds no image"
    raise UnreadableImageError(f"cannot read an image of a data set: {reason}", path=path, reason=reason)


def content_of(cell: dict[str, Any] | bytes | None, roots: Sequence[str]) -> str | bytes:
    """The bytes in a cell of a data set, or the path of its file, see `placed`.

    An empty cell gives no bytes: one unreadable image, which need not stop the others.
    """
    if not isinstance(cell, dict):
        return cell or b""
    return cell.get("bytes") or (placed(cell["path"], roots) if cell.get("path") else b"")


def with_place(image: dict[str, Any] | None, roots: Sequence[str]) -> dict[str, Any] | None:
    """A stored image; one without bytes gets the full path of its file, see `placed`."""
    if image is None or image["bytes"] is not None or not image["path"]:
        return image
    return {**image, "path": placed(image["path"], roots)}


def encoded_bytes(image: dict[str, Any] | None) -> bytes:
    """The bytes of a stored image, or of the file that `with_place` found.

    Raises:
        UnreadableImageError: an empty cell, or no such file.
    """
    if image is None:
        raise UnreadableImageError("the row holds no image")
    path = image["path"]
    if image["bytes"] is not None or not path:
        return image["bytes"] or b""
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError(errno.EINVAL, "it is no regular file")  # a pipe would never end
        return Path(path).read_bytes()
    except OSError as error:
        reason = str(error.strerror)
        raise UnreadableImageError(f"cannot read {path}: {reason}", path=path, reason=reason) from error
