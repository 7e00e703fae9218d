"""Tables of images and labels: CSV and parquet files, names of splits, and checks before they are used."""

import logging
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import CONTROL, BadDataError, join_names, nearest, one_line
from ..files import with_formulas
from ..images.reading import IMAGE_SUFFIXES
from .parquet import MOST_COLUMNS, read_bounded
from .splits import SPLITS, name_splits, normalise_split, splits_of

ACCEPTED_SPLITS = "accepted are train, val and test, and names such as Training, validation, dev, Test_Set, Test400"
logger = logging.getLogger(__name__)
TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet")
WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers", ".sav", ".dta", ".sas7bdat", ".rds", ".json")
EYES = re.compile(r"(?<![a-z])(left|right|od|os|ou|re|le|l|r)(?![a-z])", re.I)
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz")
SAVE_AS_CSV = "save it as CSV (in Excel: Save As, CSV UTF-8)"
METADATA = "metadata.csv"  # beside images
TEXT_COLUMNS = ("id", "patient_id", "image", "eye", "split")

# Columns by their names without case, blanks, hyphens, dots and underscores. Those of the second line hold a split
# only where their values say so.
SPLIT_COLUMNS = re.compile(
    r".*(split|partition)s?|usage|tvt|(train|test|val|valid|dev){2,3}|cv|crossval(idation)?|"
    r"(cv|k|inner|outer|test|val)?folds?(id|nr|no|num|number|idx|index)?"
)


def read_table(path: Path, text_columns: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV (comma, semicolon, tab or bar, told by its first line) or a parquet file.

    Beside semicolons and tabs a decimal comma is read as a point.

    Args:
        path: of the file.
        text_columns: read as text if they are not numeric throughout, so that a class called "None" or "NA" is not
            taken for a missing value. Patient and image names are always text ("007" is not 7).

    Raises:
        BadDataError: the file is not such a table, or has no rows.
    """
    try:
        if path.suffix.lower() == ".parquet":
            stored = read_bounded(path)
            table = stored.to_pandas().reset_index(drop=True)  # rows of a table that pandas had filtered or joined
            table = table.rename(columns=lambda name: name.strip() if isinstance(name, str) else name)
        else:
            table = with_formulas(_read_csv(path, text_columns))
    except Exception as error:  # damaged files give errors of every type
        reason = one_line(error)
        raise BadDataError(f"{path} cannot be read as a {path.suffix[1:]} table: {reason}", source=path) from error
    if table.empty:
        raise BadDataError(f"{path} has no rows", source=path)
    return table


def _read_csv(path: Path, text_columns: Sequence[str]) -> pd.DataFrame:
    encoding = _encoding(path)
    with open(path, encoding=encoding) as file:
        first_line = file.readline()
        stated = re.fullmatch(r'"?sep=(.)"?\s*', first_line, re.I)  # a line that Excel reads and writes
        first_line = file.readline() if stated else first_line
    separator = stated[1] if stated else max(",;\t|", key=first_line.count)
    options: dict[str, Any] = {"sep": separator, "encoding": encoding, "skipinitialspace": True}
    if stated:
        options["skiprows"] = 1
    if first_line.count(separator) >= MOST_COLUMNS:
        raise BadDataError(f"{path} has more than {MOST_COLUMNS:,} columns; keep those that are used", source=path)
    header = [str(name).strip() for name in pd.read_csv(path, nrows=0, **options).columns]
    twice = [name for name in (*text_columns, *TEXT_COLUMNS) if name in header and f"{name}.1" in header]
    if twice:
        raise BadDataError(f"{path} has several columns called {join_names(map(repr, twice))}; keep one", source=path)
    options |= {"names": header, "header": 0}
    table = pd.read_csv(path, dtype={name: str for name in header if name in TEXT_COLUMNS}, **options)
    words = [name for name in text_columns if name in header and not pd.api.types.is_numeric_dtype(table[name])]
    if words:
        exact = pd.read_csv(path, dtype=str, usecols=words, keep_default_na=False, **options)
        table = table.assign(**{name: exact[name].where(exact[name].str.strip() != "") for name in words})
    if options["sep"] in (";", "\t"):
        table = table.assign(**{name: _without_decimal_commas(table[name]) for name in header})
    return table


def _without_decimal_commas(values: pd.Series) -> pd.Series:
    """Numbers where all values have decimal commas or none, and some are no thousands; else the values."""
    texts = values.dropna().astype(str).str.strip()
    if values.name in TEXT_COLUMNS or not texts.str.contains(r",(?!\d{3}$)").any():
        return values
    numbers = texts.str.fullmatch(r"[+-]?\d+(,\d+)?").all()
    return pd.to_numeric(texts.str.replace(",", ".")).reindex(values.index) if numbers else values


def _encoding(path: Path) -> str:
    """UTF-8 or UTF-16 as marked or by the zeros of its letters, UTF-8, or with a warning Windows-1252."""
    start = path.read_bytes()
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in start[:2]:  # UTF-16 without its mark
        return "utf-16-be" if start[0] == 0 else "utf-16-le"
    if start.startswith(b"PK\x03\x04"):
        raise BadDataError(f"{path} is a workbook or an archive, not text; {SAVE_AS_CSV}", source=path)
    try:
        start.decode("utf-8-sig")
        return "utf-8-sig"
    except UnicodeDecodeError as error:
        try:
            start.decode("cp1252")
        except UnicodeDecodeError:
            raise BadDataError(f"{path} is neither UTF-8 nor Windows-1252; {SAVE_AS_CSV}", source=path) from error
        word = start[: error.end + 20].decode("cp1252").splitlines()[-1][-40:]
        message = "%s is not UTF-8 and is read as Windows-1252 (%r); if that looks wrong, %s"
        logger.warning(message, path, word, SAVE_AS_CSV)
        return "cp1252"


def check_suffix(path: Path, accepted: str) -> None:
    """Raise unless `path` is called as a table is; `accepted` says what else may be given."""
    if path.suffix.lower() not in TABLE_SUFFIXES:
        kind = path.suffix.lower()
        fix = SAVE_AS_CSV if kind in WORKBOOKS else f"give {accepted}"
        fix = "unpack it and give what it holds" if kind in ARCHIVES else fix
        raise BadDataError(f"{path} is not a table ({', '.join(TABLE_SUFFIXES)}); {fix}", source=path)


def table_images(
    table: pd.DataFrame, path: str | Path, image_column: str, image_root: str | None = None
) -> pd.DataFrame:
    """Replace `image_column` by `id` (path relative to the root, normalised) and `image` (absolute path).

    Args:
        table: of `read_table`.
        path: of the table's file.
        image_column: of the written paths.
        image_root: folder at which relative paths start; by default that of the table.

    Raises:
        BadDataError: no such column, or rows without a path.
    """
    check_columns(table, [image_column], path, "image_column")
    check_filled(table, image_column, path)
    kinds = {
        type(name).__name__
        for name in table[image_column]
        if pd.api.types.is_list_like(name) or isinstance(name, bytes)
    }
    if kinds:
        message = f"{path}: column {image_column!r} holds {join_names(sorted(kinds))} in place of paths or images"
        raise BadDataError(message, source=path)
    root = os.path.abspath(image_root or os.path.dirname(path))
    # Strings, since pathlib takes its time for a million rows.
    names = [str(name).replace("\\", "/").removeprefix("./") for name in table[image_column]]
    rest = table.drop(columns=[name for name in ("id", image_column) if name in table.columns])
    ids = [posixpath.normpath(name).removeprefix(f"{root}/") for name in names]
    return rest.assign(id=ids, image=[os.path.join(root, name) for name in names])


def as_text(values: pd.Series) -> pd.Series:
    """Values as `str` (dtype object), None where missing; whole numbers without a decimal point."""

    def text(value: object) -> str | None:
        if pd.isna(value):
            return None
        if isinstance(value, (float, np.floating)) and float(value).is_integer():
            return str(int(value))
        return str(value).strip()

    return pd.Series([text(value) for value in values], index=values.index, dtype=object)


def check_columns(table: Iterable[Any], wanted: Sequence[str], source: object, field: str = "") -> None:
    """Raise `BadDataError` unless `table` has the columns `wanted`; `field` is the argument that names them."""
    columns = [str(column) for column in table]
    for name in wanted:
        if name not in columns:
            fix = (f"; name the right one with `{field}`" if field else "") + nearest(name, columns)
            message = f"{source} has no column {name!r}; its columns are {join_names(columns, 20)}{fix}"
            raise BadDataError(message, source=source)


def check_filled(table: pd.DataFrame, column: str, source: object) -> None:
    """Raise if rows have no value in `column`, naming them by their column `id`, or by numbers from 1."""
    numbers = pd.Series(range(1, len(table) + 1), table.index)
    rows = (table["id"] if "id" in table and column != "id" else numbers)[table[column].isna()]
    if len(rows):
        counts = f"{len(rows)} of {len(table)} rows have no value in column {column!r}"
        message = f"{source}: {counts} (row {join_names(rows)}); fill it, or remove these rows"
        raise BadDataError(message, rows=rows, source=source)


def bare(name: object) -> str:
    """A column's name without case, blanks, hyphens, dots and underscores."""
    return re.sub(r"[\s_.\-]+", "", str(name)).casefold()


FLAGS = {"0", "1", "0.0", "1.0", "true", "false", "yes", "no", "y", "n", "t", "f", "x", ""}


def check_split_column(table: pd.DataFrame, label_columns: Sequence[str], data: object) -> None:
    """Raise if the splits are in a column of another name than `split`, told by its name or its values."""
    for name in table.columns.difference([*label_columns, "id", "image", "patient_id"], sort=False):
        known = bool(SPLIT_COLUMNS.fullmatch(bare(name)))
        flag = normalise_split(re.sub(r"^\s*(is|in|for|used?)(?=[\s_.\-A-Z]|t|val)", "", str(name)))  # such as is_test
        known = known or bool(flag and {str(value).casefold() for value in table[name].dropna()} <= FLAGS)
        if known or (table[name].nunique() <= 2 * len(SPLITS) and name_splits(as_text(table[name]).dropna().unique())):
            values = join_names(table[name].dropna().unique())
            raise BadDataError(
                f"{data} has no column split, but {name!r} ({values}): call it split, with the values train, val and "
                "test, so that its parts stay apart, or remove it if it does not divide the images",
                source=data,
            )


def normalised_splits(table: pd.DataFrame, data: str) -> pd.Series:
    """Column `split` as "train", "val" and "test"; BadDataError (`rows`) for other values."""
    splits = table["split"].map(splits_of(table["split"].dropna().unique()))
    if splits.isna().any():
        wrong = table.loc[splits.isna(), "split"].astype(object).fillna("no value").unique()
        raise BadDataError(
            f"{data}: column split holds {join_names(wrong)}; {ACCEPTED_SPLITS}, or no split column at all",
            rows=table.loc[splits.isna(), "id"], source=data,
        )  # fmt: skip
    return splits


def check_needed_splits(table: pd.DataFrame, need_splits: Sequence[str], data: object) -> None:
    """Raise unless every split of `need_splits` has an image."""
    present = [split for split in SPLITS if (table["split"] == split).any()]
    missing = [split for split in need_splits if split not in present]
    if missing:
        raise BadDataError(
            f"{data} has no {' and no '.join(missing)} split (it has {join_names(present)}); add it, or leave "
            "the splits out altogether to have them made by patient",
            source=data,
        )


def check_no_patient_leak(table: pd.DataFrame) -> None:
    """Raise if a patient has images in more than one split.

    Args:
        table: columns `patient_id` (missing where unknown) and `split`.

    Raises:
        BadDataError: its `rows` are the patients.
    """
    known = table.dropna(subset=["patient_id"])
    found = known.groupby("patient_id")["split"].unique()
    leaked = found[found.map(len) > 1]
    if len(leaked) == 0:
        return
    named = "; ".join(
        f"{patient} in {' and '.join(sorted(splits, key=SPLITS.index))}" for patient, splits in leaked[:5].items()
    )
    raise BadDataError(
        f"{len(leaked)} patient(s) are in more than one split ({named}{'; ...' if len(leaked) > 5 else ''}), so that "
        "the test would not be of unseen patients; keep each patient in one split, or give a table without a split "
        "column to have it split by patient",
        rows=leaked.index,
    )


def check_unique_images(table: pd.DataFrame, data: object) -> None:
    """Raise if an image is listed twice: its rows could disagree, or lie in two splits."""
    repeated = table[table.duplicated("id", keep=False)]
    if len(repeated) == 0:
        return
    across = repeated.groupby("id")["split"].nunique() > 1 if "split" in repeated else pd.Series(dtype=bool)
    names = list(across.index[across]) if across.any() else repeated["id"].unique()
    where = "are in more than one split" if across.any() else "are listed more than once"
    raise BadDataError(
        f"{data}: {len(names)} image(s) {where} ({join_names(names)}); list each image once", rows=names, source=data
    )


def find_files(paths: Iterable[Any], data: object) -> list[Any]:
    """Paths, of which those of absent files become the one file that differs by its suffix alone (`e1`, `e1.JPG`).

    Raises:
        BadDataError: several files do (`rows`).
    """
    listed: dict[str, dict[str, list[str]]] = {}

    def find(path: Any) -> Any:
        if not isinstance(path, str) or os.path.isfile(path):
            return path
        folder, name = os.path.split(path)
        if folder not in listed:
            listed[folder] = {}
            for other in sorted(os.listdir(folder)) if os.path.isdir(folder) else ():
                if other.lower().endswith(IMAGE_SUFFIXES):
                    listed[folder].setdefault(stem(other), []).append(other)
        found = listed[folder].get(stem(name), [])
        if len(found) > 1:
            message = f"{data}: {name} does not exist, and {join_names(found)} do; give the whole name"
            raise BadDataError(message, rows=[path], source=data)
        return os.path.join(folder, found[0]) if found else path

    return [find(path) for path in paths]


def stem(name: str) -> str:
    """A file's name without the suffix of an image."""
    without, suffix = os.path.splitext(name)
    return without if suffix.lower() in IMAGE_SUFFIXES else name


def check_images_exist(table: pd.DataFrame, data: object) -> None:
    """Raise if image files are absent; images held as bytes pass."""
    missing = [path for path in table["image"] if isinstance(path, str) and not os.path.isfile(path)]
    if missing:
        raise BadDataError(
            f"{data}: {len(missing)} of {len(table)} image files do not exist ({join_names(missing)}); relative paths "
            "start at the table's folder, or at `image_root`",
            rows=missing, source=data,
        )  # fmt: skip


def read_metadata(path: Path) -> pd.DataFrame:
    """The table beside a folder's images: `image` is the path within the folder.

    Raises:
        BadDataError: no such column, or an image that is listed twice (`rows`).
    """
    table = read_table(path).rename(columns={"file_name": "image"})
    check_columns(table, ["image"], path)
    table["image"] = table["image"].str.replace("\\", "/").str.removeprefix("./")
    if table["image"].duplicated().any():
        repeated = table.loc[table["image"].duplicated(), "image"].unique()
        message = f"{path} lists {len(repeated)} image(s) more than once ({join_names(repeated)})"
        raise BadDataError(message, rows=repeated, source=path)
    return table


def warn_of_passed_over(root: str | Path, others: Sequence[str], images: Sequence[str] = ()) -> None:
    """Name files under `root` that are not taken, by their suffixes, and images outside its class folders."""
    kinds: dict[str, list[str]] = {"images outside the class folders": list(images)} if images else {}
    for name in others:
        if name not in (METADATA, "run.json", "README.md"):
            kinds.setdefault(f"files with suffix {os.path.splitext(name)[1].lower() or 'none'}", []).append(name)
    if kinds:
        named = "; ".join(f"{len(names)} {kind} ({join_names(names, 3)})" for kind, names in kinds.items())
        total = sum(map(len, kinds.values()))
        logger.warning("%s: %d files are skipped: %s", root, total, named)


def check_spelling(names: Iterable[str], data: object) -> None:
    """Raise if two classes differ in nothing but case, spaces, hyphens or underscores, or one has a line break."""
    seen: dict[str, str] = {}
    for name in sorted(set(names)):
        if CONTROL.search(name):  # it would start lines of its own in cards and tables
            message = f"{data}: class {name!r} has a line break or another control character; give it another name"
            raise BadDataError(message, rows=[name], source=data)
        if (other := seen.setdefault(bare_name(name), name)) != name:
            message = f"{data}: classes {other!r} and {name!r} look like one class in two spellings; give it one name"
            raise BadDataError(message, source=data)


def bare_name(name: str) -> str:
    """A name without what two spellings of it differ in: case, spaces, hyphens, underscores; of numbers, the value."""
    if re.fullmatch(r"[+-]?\d+([.,]\d+)?", name.strip()):
        return f"{float(name.replace(',', '.')):g}"
    name = unicodedata.normalize("NFKC", name)
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split()) or name


def check_class_coverage(counts: pd.DataFrame, need_splits: Sequence[str], data: object) -> None:
    """Raise if training would never see a class that it is validated or tested on; warn of the reverse.

    Args:
        counts: images (or positives, for multi-label) by class and split.
        need_splits: splits that are used.
        data: source of the images, for errors.
    """
    if "train" in need_splits:
        untrained = counts.index[(counts["train"] == 0) & (counts.sum(axis=1) > 0)]
        if len(untrained):
            names = f"{join_names(untrained)}, which other splits have; add some, or remove the class"
            raise BadDataError(f"{data}: the train split has no image of class {names}", source=data)
    for split in need_splits:
        absent = counts.index[counts[split] == 0]
        if split != "train" and len(absent):
            message = "%s: the %s split has no image of class %s; metrics that need one will be null"
            logger.warning(message, data, split, join_names(absent))


def check_inner_folders(root: Path, images: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Raise where every class folder holds the same folders, which look like the classes; warn where two are shared.

    Args:
        root: of the set.
        images: class, and parts of the path within `root`, of each image.
    """
    inner: dict[str, set[str]] = {}
    for label, parts in images:
        within = [part for part in parts[parts.index(label) + 1 : -1] if not normalise_split(part)]
        inner.setdefault(label, set()).add(within[0] if within else "")
    shared = set.intersection(*inner.values()) - {""} if len(inner) > 1 else set()
    if len(shared) < 2 or all(EYES.fullmatch(name) for name in shared):
        return
    asks = (
        f"{root}: the folders {join_names(sorted(inner))} hold the same folders ({join_names(sorted(shared))}); if "
        "those are the classes, lay them out as {train,val,test}/<class>/"
    )
    if all(names == shared for names in inner.values()) and not all(name.isdigit() for name in shared):
        message = f"{asks}, else name the classes with `class_names`"
        raise BadDataError(message, source=root)
    logger.warning(asks)


def names_without_eye(ids: pd.Series) -> pd.Series:
    """File names without suffix and the mark of the eye: `10_left.jpeg` and `10_right.jpeg` give `10`."""
    stems = [re.sub(r"\.\w+$", "", posixpath.basename(name)) for name in ids]
    bare_names = [re.sub(r"[\W_]+", "_", EYES.sub("", stem.replace("_", " "))).strip("_") for stem in stems]
    return pd.Series([bare or stem for bare, stem in zip(bare_names, stems, strict=True)], ids.index, dtype=object)
