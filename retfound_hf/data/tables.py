"""Tables of images and labels: reading CSV and parquet, and what label columns mean."""

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import RetFoundError, join_names
from ..evaluation.validation import ProblemType
from ..vocabulary import PROBLEM_TYPES
from .checks import check_columns, check_labels_present, check_spelling


def as_text(values: pd.Series) -> pd.Series:
    """Values as `str` (dtype object), None where missing; whole numbers without a decimal point."""

    def text(value: object) -> str | None:
        if pd.isna(value):
            return None
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            return str(int(value))
        return str(value).strip()

    return pd.Series([text(value) for value in values], index=values.index, dtype=object)


def infer_problem_type(
    table: pd.DataFrame, columns: Sequence[str], problem_type: str | None, data: object
) -> ProblemType:
    """One label column means classes, several columns of 0 and 1 multi-label; regression must be asked for.

    Raises:
        RetFoundError: a name transformers does not know, a label column of fractions, or several columns that hold
            anything but 0 and 1.
    """
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise RetFoundError(f"problem_type {problem_type!r} is unknown; choose one of {', '.join(PROBLEM_TYPES)}")
    if problem_type == "single_label_classification" and len(columns) > 1:
        raise RetFoundError(f"{problem_type} takes one label column, not {len(columns)} ({join_names(columns)})")
    if problem_type is not None:
        return problem_type
    if len(columns) > 1:
        return "multi_label_classification"
    values = table[columns[0]].dropna()
    if pd.api.types.is_float_dtype(values) and not np.equal(np.mod(values, 1), 0).all():
        raise RetFoundError(
            f"{data}: column {columns[0]!r} holds {values.nunique()} different values such as "
            f"{join_names(values[:3])}; "
            "for a numeric target pass --problem_type regression, "
            "for classes --problem_type single_label_classification"
        )
    return "single_label_classification"


def clean_labels(
    table: pd.DataFrame,
    columns: Sequence[str],
    problem_type: ProblemType,
    class_names: Sequence[str] | None,
    data: object,
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Bring the label columns to one type (text, 0/1 integers, or floats) and find the names of the classes.

    Returns:
        The table and the class names: for single-label the given names, else those that occur, numbers in numeric
        order; for multi-label and regression the columns.

    Raises:
        RetFoundError: a missing, unknown or non-numeric label, or a class spelled in two ways.
    """
    check_labels_present(table, columns, data)
    if problem_type == "single_label_classification":
        labels = as_text(table[columns[0]])
        names = tuple(class_names) if class_names is not None else ordered(labels.unique())
        if class_names is None:
            check_spelling(names, data)
        unknown = ordered(set(labels) - set(names))
        if unknown:
            raise RetFoundError(
                f"{data}: label(s) {join_names(unknown)} are unknown to the model, whose classes are "
                f"{join_names(names, 50)}; "
                "rename them, or remove their images"
            )
        return table.assign(**{columns[0]: labels}), names
    numbers = {column: pd.to_numeric(table[column], errors="coerce").astype(float) for column in columns}
    for column, values in numbers.items():
        if problem_type == "regression":
            wrong, accepted = ~np.isfinite(values), "finite numbers"
        else:
            wrong, accepted = ~values.isin((0, 1)), "0 and 1 (for numeric targets pass --problem_type regression)"
        if wrong.any():
            found = pd.unique(table.loc[wrong, column])
            raise RetFoundError(
                f"{data}: column {column!r} holds {join_names(found)} (images "
                f"{join_names(table.loc[wrong, 'id'])}), where "
                f"only {accepted} are accepted"
            )
    kind = float if problem_type == "regression" else int
    return table.assign(**{column: values.astype(kind) for column, values in numbers.items()}), tuple(columns)


def ordered(names: Sequence[str] | set[str]) -> tuple[str, ...]:
    """Names sorted as text, or by value where all of them are numbers ("2" before "10")."""
    if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


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
