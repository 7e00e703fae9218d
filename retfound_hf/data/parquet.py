"""Parquet files that hold images: recognising them, bounds on their size, and the splits that they belong to."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import BadDataError, one_line
from .tables import MOST_COLUMNS

MOST_UNPACKED, MAX_RATIO = 2**29, 10  # bytes of a file that are not asked about, and ratio of the others
IMAGE_BYTES = (pa.types.is_binary, pa.types.is_large_binary)


@contextmanager
def parquet_errors(path: str | Path) -> Iterator[None]:
    """Turn errors of reading a parquet file within the block into `BadDataError`."""
    try:
        yield
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        raise BadDataError(f"{path} cannot be read as a parquet table: {one_line(error)}", source=path) from error


def image_field(path: Path, wanted: str) -> str | None:
    """Column of a parquet file with the files' bytes, or what `datasets` writes for images: `wanted`, or the only one.

    None where there is no such column, as in a table of paths.
    """
    if path.suffix.lower() != ".parquet":
        return None
    with parquet_errors(path), pq.ParquetFile(path) as file:
        _check_unpacked(path, file.metadata)
        schema = file.schema_arrow
        found = [column.name for column in schema if is_image_type(column.type)]
        return wanted if wanted in found else found[0] if len(found) == 1 and wanted not in schema.names else None


def _check_unpacked(path: Path, facts: pq.FileMetaData) -> None:
    """Raise `BadDataError` for a parquet file that would unpack to far more than it is, or has too many columns."""
    # Not column by column: pyarrow ends the process where a damaged footer has a column that does not exist.
    unpacked = sum(facts.row_group(number).total_byte_size for number in range(facts.num_row_groups))
    size = path.stat().st_size
    if facts.num_columns > MOST_COLUMNS:
        raise BadDataError(f"{path} has more than {MOST_COLUMNS:,} columns; keep those that are used", source=path)
    if unpacked > max(MOST_UNPACKED, MAX_RATIO * size) or facts.num_rows > size:
        message = f"{path} has {size:,} bytes and would unpack to {facts.num_rows:,} rows of {unpacked:,} bytes in all"
        raise BadDataError(message, source=path)


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
