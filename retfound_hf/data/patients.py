"""Patients of a labelled set: their column, ids that name nobody, and patients written in two ways."""

import logging
import posixpath
import re
import unicodedata
from collections.abc import Sequence

import pandas as pd

from ..errors import BadDataError, join_names
from .known_names import (
    DUMMY_NUMBERS,
    EYES,
    LOST_DIGITS,
    PATIENT_COLUMNS,
    REPEATED_PATIENT_COLUMNS,
    UNKNOWN_PATIENTS,
    bare,
)
from .tables import as_text, check_columns

logger = logging.getLogger(__name__)
NONE, BY_NAME = "none", "image"  # values of `patient_column` that are no columns
OWN_ID = "id "  # a table's own column id, which may name patients; headers have no blanks at their ends
MANY = 5  # images of one "patient" from which a dummy number is suspected


def find_patients(
    table: pd.DataFrame, label_columns: Sequence[str], patient_column: str | None, data: object, check: bool = True
) -> pd.Series:
    """Patient of each image as text, None where unknown.

    Args:
        table: with `id`; its own column of ids, if any, is `OWN_ID`.
        label_columns: are not taken for patients.
        patient_column: a column; "image" for the images' names without left or right; "none" for images that have
            nothing to do with each other; by default `patient_id`, if there is one.
        data: source of the table, for messages.
        check: look for patients in other columns and in names.

    Raises:
        BadDataError: another column seems to name the patients, or one patient is written in two ways (`rows`).
    """
    unknown = pd.Series(None, table.index, dtype=object)
    if patient_column == NONE:
        return unknown
    if patient_column == BY_NAME and BY_NAME not in table.columns.drop("image"):
        return names_without_eye(table["id"])
    column = "patient_id" if patient_column is None else OWN_ID if patient_column == "id" else patient_column
    if patient_column is None and column not in table:
        if check:
            _refuse_other_columns(table, label_columns, data)
            _warn_of_pairs(table, label_columns, data)
        return unknown
    check_columns(table, [column], data, "patient_column")
    patients = _without_placeholders(as_text(table[column]), data, column)
    _check_spelling(patients, data)
    missing = int(patients.isna().sum())
    if check and 0 < missing < len(table):
        logger.warning("%s: %d of %d images have no patient_id; each counts as a patient", data, missing, len(table))
    return patients


def names_without_eye(ids: pd.Series) -> pd.Series:
    """File names without suffix and the mark of the eye: `10_left.jpeg` and `10_right.jpeg` give `10`."""
    stems = [re.sub(r"\.\w+$", "", posixpath.basename(name)) for name in ids]
    bare_names = [re.sub(r"[\W_]+", "_", EYES.sub("", stem.replace("_", " "))).strip("_") for stem in stems]
    return pd.Series([bare or stem for bare, stem in zip(bare_names, stems, strict=True)], ids.index, dtype=object)


def _refuse_other_columns(table: pd.DataFrame, label_columns: Sequence[str], data: object) -> None:
    others = []
    for name in table.columns.difference([*label_columns, "id", "image", "split"], sort=False):
        if PATIENT_COLUMNS.fullmatch(str(name).strip()):
            others.append(name)
        elif REPEATED_PATIENT_COLUMNS.fullmatch(bare(name)):
            different = table[name].nunique()
            if 2 < different < table[name].count() <= 20 * different:
                others.append(name)
    if others:
        names = [str(name).strip() for name in others]
        raise BadDataError(
            f"{data} has no column patient_id, but {join_names(map(repr, names))}: call it patient_id or pass "
            f"`patient_column='{names[0]}'`, so that no patient lies in two splits; pass `patient_column='none'` "
            "if it does not name patients",
            source=data,
        )


def _warn_of_pairs(table: pd.DataFrame, label_columns: Sequence[str], data: object) -> None:
    """Warn where a column or the images' names look like patients with several images."""
    pairs = names_without_eye(table["id"])
    eyes = table["id"].map(lambda name: tuple(mark.lower() for mark in EYES.findall(name.replace("_", " "))))
    with_fellow = eyes.groupby(pairs).transform("nunique") > 1
    stems = table["id"].str.replace(r"\.\w+$", "", regex=True)
    numbered = stems.str.replace(r"[_\-. ]+[a-z]?\d{1,3}$", "", regex=True, case=False)
    if with_fellow.mean() >= 0.2:
        example = table["id"][pairs == pairs[with_fellow].iloc[0]]
        _warn_of("names pair up, such as " + " and ".join(example[:2]), pairs[with_fellow], table, BY_NAME, data)
        return
    if _look_like_patients(numbered):
        example = table["id"][numbered == numbered[numbered.duplicated(keep=False)].iloc[0]]
        _warn_of(
            "names look numbered within patients, such as " + " and ".join(example[:2]), numbered, table, "", data
        )
    for name in table.columns.difference([*label_columns, "id", "image", "split", "patient_id"], sort=False):
        values = table[name]
        if not pd.api.types.is_float_dtype(values) and _look_like_patients(as_text(values)):
            _warn_of(f"the values of column {str(name).strip()!r} repeat in pairs", values, table, name, data)


def _look_like_patients(values: pd.Series) -> bool:
    """Whether values occur a few times each, at least half of them in pairs, as those of chance would not."""
    images = values.map(values.value_counts())
    return values.nunique() >= MANY and (images == 2).mean() >= 0.5 and images.max() <= 2 * MANY


def _warn_of(what: str, patients: pd.Series, table: pd.DataFrame, option: object, data: object) -> None:
    if "split" in table and (table["split"].groupby(patients).nunique() <= 1).all():
        return
    column = str(option).strip()
    fix = f"pass `patient_column='{column}'`" if column else "name the patients in a column patient_id"
    logger.warning(
        "%s: no patients are given, and %s; if these are of one patient, %s, or one patient's images lie in two "
        "splits", data, what, fix,
    )  # fmt: skip


def _without_placeholders(patients: pd.Series, data: object, column: str) -> pd.Series:
    """Patients without words for "unknown", spoilt numbers and dummy numbers; a warning names them."""
    counts = patients.value_counts()
    usual = counts.iloc[len(counts) // 2] if len(counts) else 0
    placeholders = [
        name for name, images in counts.items()
        if name.casefold() in UNKNOWN_PATIENTS or LOST_DIGITS.fullmatch(name)
        or (DUMMY_NUMBERS.fullmatch(name) and images >= MANY and images > 4 * usual)
    ]  # fmt: skip
    named = [name for name in placeholders if name]
    if named:
        images = int(counts[named].sum())
        message = "%s: %s in column %s (%d images) is taken for no patient: each of these images counts as one"
        logger.warning(message, data, join_names(map(repr, named)), column.strip(), images)
    kept = counts.drop(placeholders)
    if len(kept) > 2 and kept.iloc[0] >= 2 * MANY and kept.iloc[0] > 4 * kept.iloc[1]:
        message = "%s: patient %r has %d of %d images; if that is no patient, leave its field empty"
        logger.warning(message, data, kept.index[0], kept.iloc[0], len(patients))
    return patients.where(~patients.isin(placeholders), None)


def _check_spelling(patients: pd.Series, data: object) -> None:
    """Raise if two ids differ in leading zeros, case, blanks or a decimal point alone."""
    seen: dict[str, list[str]] = {}
    for name in sorted(patients.dropna().unique()):
        seen.setdefault(_key(name), []).append(name)
    twice = [names for names in seen.values() if len(names) > 1]
    if twice:
        named = join_names(" and ".join(map(repr, names)) for names in twice)
        raise BadDataError(
            f"{data}: {len(twice)} patient(s) seem to be written in two ways ({named}); write each in one way",
            rows=[name for names in twice for name in names], source=data,
        )  # fmt: skip


def _key(name: str) -> str:
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", name).casefold()).strip(" '\"")
    text = re.sub(r"^(\d+)[.,]0+$", r"\1", text)
    text = re.sub(r"(?<=[^\W\d_])[ _\-.#]+(?=\d)", "", text)
    return re.sub(r"(?<!\d)(?<!\d[.,])0+(?=\d)", "", text)
