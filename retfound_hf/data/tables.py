"""A labelled set from a CSV or parquet table."""

import os
import posixpath
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..runs.errors import RetFoundError
from .checks import check_columns

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")


def read_table(path: Path, text_columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV (comma, semicolon or tab, seen from its first line) or a parquet file.

    Args:
        text_columns: read as text if they are not numeric throughout, so that a class called "None" or "NA" is not
            taken for a missing value. Patient and image names are text always ("007" is not 7).

    Raises:
        RetFoundError: the file is no such table, or has no rows.
    """
    try:
        table = pd.read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path, text_columns)
    except (ValueError, OSError) as error:  # pandas' and pyarrow's parsing errors are ValueErrors
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RetFoundError(f"{path} cannot be read as a {path.suffix[1:]} table: {reason}") from error
    if table.empty:
        raise RetFoundError(f"{path} has no rows")
    return table


def holds_images(path: Path, image_column: str) -> bool:
    """Whether `path` is a parquet file that holds the images themselves, as `datasets` writes it, instead of paths."""
    if path.suffix.lower() != ".parquet":
        return False
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except pyarrow.ArrowInvalid as error:
        raise RetFoundError(f"{path} cannot be read as a parquet table: {error}") from error
    return image_column in schema.names and pyarrow.types.is_struct(schema.field(image_column).type)


def table_images(table: pd.DataFrame, path: Path, image_column: str, image_root: str | None) -> pd.DataFrame:
    """Add `id` (as written, normalised) and `image` (absolute path) for the paths in `image_column`.

    Relative paths start at `image_root`, or else at the folder of the table.
    """
    check_columns(table, [image_column], path, "--image_column")
    root = Path(image_root).absolute() if image_root else path.absolute().parent
    written = table[image_column]
    if written.isna().any():
        rows = [str(row) for row in table.index[written.isna()][:5] + 1]
        raise RetFoundError(f"{path}: {written.isna().sum()} rows name no image (row {', '.join(rows)})")
    names = [str(name).replace("\\", "/") for name in written]
    paths = [root / name for name in names]
    # Most names are relative already, and pathlib takes its time.
    ids = [_below(path, root) if os.path.isabs(name) else name for name, path in zip(names, paths, strict=True)]
    rest = table.drop(columns=[name for name in ("id", image_column) if name in table.columns])
    return rest.assign(id=[posixpath.normpath(name) for name in ids], image=[str(path) for path in paths])


def _below(path: Path, root: Path) -> str:
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def _read_csv(path: Path, text_columns: Sequence[str]) -> pd.DataFrame:
    with open(path, encoding="utf-8-sig") as file:
        first_line = file.readline()
    options = {"sep": max(",;\t", key=first_line.count), "encoding": "utf-8-sig", "skipinitialspace": True}
    header = pd.read_csv(path, nrows=0, **options).columns
    always_text = {name: str for name in header if name in ("id", "patient_id", "image", "eye", "split")}
    table = pd.read_csv(path, dtype=always_text, **options)
    words = [name for name in text_columns if name in header and not pd.api.types.is_numeric_dtype(table[name])]
    if words:
        exact = pd.read_csv(path, dtype=str, usecols=words, keep_default_na=False, **options)
        table = table.assign(**{name: exact[name].where(exact[name].str.strip() != "") for name in words})
    return table
