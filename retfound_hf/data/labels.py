"""Columns of labels and of patients: what they mean, the order of classes, ids that name nobody."""

import ast
import logging
import posixpath
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import chdtr

from ..errors import BadArgumentError, BadDataError, join_names, require
from ..vocabulary import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL, in_order, order_classes
from .tables import EYES, as_text, bare, check_columns, check_filled, check_spelling, names_without_eye

logger = logging.getLogger(__name__)
MANY_GRADES = 10  # different whole numbers, above which they may be measurements
SEPARATORS = ("|", ";", "；", "\n", ",", "，", "、", "+", "&", "/", " and ", " ")
ALWAYS_SEPARATE = "|;；\n，、"
HOT = re.compile(r"\s*[01]([\s;|]+[01])+\s*|\s*[01](\s*,\s*[01]){2,}\s*")  # multi-hot as text: 0 1 0

NONE, BY_NAME = "none", "image"  # values of `patient_column` that are no columns
OWN_ID = "id "  # a table's own column id, which may name patients; headers have no blanks at their ends
MANY = 5  # images of one "patient" from which a dummy number is suspected

PATIENT_COLUMNS = re.compile(
    r"(patient|subject|person|participant|pat)s?[ _.-]?(id|identifier|nr|no|num|number|code)?", re.I
)
# Names (as `bare` writes them) that may be an image's or a patient's: a patient's where values occur more than once.
REPEATED_PATIENT_COLUMNS = re.compile(
    r"(unique|global|study|record|case|person|individual|proband|examinee|client|member|anon\w*|pseudo\w*|deid\w*|"
    r"research|medicalrecord|chart|nhs|pt|subj?|patient(en)?|paciente?|subject|participant|pat)"
    r"(ids?|identifier|nr|no|num|number|nummer|code|key|index|name|hash|uid|guid)|hospital(nr|no|num|number)|"
    r"id(patient|subject|person|participant|case)|ids?|identifier|[ehpsu]id|[fn]eid|mrn|hn|empi|urn|uhid|case|"
    r"individual|proband|examinee|client|pseudonym|paciente|pt|subj|seqn|ssn|"
    r"(患者|病人|환자)(id|号|编号|番号|번호)?"
)
UNKNOWN_PATIENTS = (
    "", "-", "--", "---", ".", "?", "??", "_", "*", "/", "x", "xx", "xxx", "unknown", "unk", "unkn", "unnamed", "n/a",
    "na", "n.a.", "#n/a", "#ref!", "#name?", "#value!", "none", "null", "nil", "nan", "<na>", "missing", "undefined",
    "not available", "not known", "not applicable", "not recorded", "unspecified", "anonymous", "anonymized", "tbd",
    "anonymised", "anon", "no id", "noid", "unbekannt", "inconnu", "desconocido",
)  # fmt: skip
# Of these the ones that may stand for a missing label.
NO_LABEL = frozenset(UNKNOWN_PATIENTS) - set("-/._*x") - {"--", "---", "xx", "xxx", "none", "nil", ""}
MISSING_NUMBER = re.compile(r"-?9{2,}|-9|-1|-?8{3,}|-?7{3,}")
# A spreadsheet's writing of long numbers, whose last digits are lost.
LOST_DIGITS = re.compile(r"\d([.,]\d+)?e\+?\d+", re.I)
# Unknown where they occur on many more images than other values.
DUMMY_NUMBERS = re.compile(r"-?(0+|1|9{2,}|-\d+)(\.0+)?")


def infer_problem_type(table: pd.DataFrame, columns: Sequence[str], problem_type: str | None, data: object) -> str:
    """Problem type of label columns: one means classes, several of 0 and 1 findings; regression must be asked for.

    Args:
        table: with the label columns.
        columns: names of the label columns.
        problem_type: that was asked for, or None.
        data: source of the table, for errors.

    Raises:
        BadArgumentError: an unknown problem type, or one that does not fit the number of columns.
        BadDataError: a label column of fractions.
    """
    if problem_type is not None:
        require("problem_type", problem_type, PROBLEM_TYPES)
        if problem_type == SINGLE_LABEL and len(columns) > 1:
            message = f"{problem_type} takes one label column, not {len(columns)} ({join_names(columns)})"
            raise BadArgumentError(message, field="label_columns", value=columns)
        return problem_type
    if len(columns) > 1:
        return MULTI_LABEL
    values = table[columns[0]].dropna()
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        different, span = values.nunique(), values.max() - values.min()
        whole = np.equal(np.mod(values, 1), 0).all()
        if not whole or different > MANY_GRADES or (different > MANY_GRADES // 2 and span > 2 * different):
            raise BadDataError(
                f"{data}: column {columns[0]!r} holds {different} different values such as "
                f"{join_names(values[:3])}; for a numeric target pass `problem_type='regression'`, for classes "
                "`problem_type='single_label_classification'`",
                source=data,
            )
    return SINGLE_LABEL


def clean_labels(
    table: pd.DataFrame,
    columns: Sequence[str],
    problem_type: str,
    class_names: Sequence[str] | None,
    data: object,
    positive_class: str | None = None,
) -> tuple[pd.DataFrame, tuple[str, ...], tuple[str, ...] | None]:
    """Bring the label columns to one type: text, 0/1 integers, or floats.

    Args:
        table: with `id` and the label columns.
        columns: names of the label columns.
        problem_type: what the labels mean.
        class_names: of a model whose classes the labels must be, or None.
        data: source of the table, for errors.
        positive_class: of two classes the finding.

    Returns:
        The table; the class names: for single-label the given ones, else those that occur, numbers in numeric
        order; for multi-label and regression the columns; and the order of the classes, see `order_classes`.

    Raises:
        BadDataError: a missing, unknown or non-numeric label, or a class spelled in two ways.
    """
    for column in columns:
        check_filled(table, column, data)
    if problem_type == SINGLE_LABEL:
        labels = as_text(table[columns[0]])
        if class_names and all(re.fullmatch(r"LABEL_\d+", name) for name in class_names):
            class_names = names_for_unnamed(class_names, tuple(labels.unique()), data)
        stated = class_names or _stated_order(table[columns[0]])
        names = tuple(stated or in_order(labels.unique()))
        if class_names is None:
            check_spelling(names, data)
            _warn_of_missing(labels, columns[0], data)
        unknown = in_order(set(labels) - set(names))
        if unknown:
            raise BadDataError(
                f"{data}: label(s) {join_names(unknown)} are unknown; the classes are "
                f"{join_names(names, 50)}; rename them, or remove their images",
                rows=table.loc[labels.isin(unknown), "id"], source=data,
            )  # fmt: skip
        return table.assign(**{columns[0]: labels}), names, order_classes(names, problem_type, positive_class, stated)
    numbers = {column: pd.to_numeric(table[column], errors="coerce").astype(float) for column in columns}
    for column, values in numbers.items():
        wrong, accepted = ~np.isfinite(values), "finite numbers"
        if problem_type == MULTI_LABEL:
            wrong, accepted = ~values.isin((0, 1)), "0 and 1 (for numeric targets pass `problem_type='regression'`)"
        if wrong.any():
            ids = table.loc[wrong, "id"]
            raise BadDataError(
                f"{data}: column {column!r} holds {join_names(pd.unique(table.loc[wrong, column]))} (images "
                f"{join_names(ids)}), where only {accepted} are accepted",
                rows=ids, source=data,
            )  # fmt: skip
        if problem_type == REGRESSION:
            _warn_of_missing(values, column, data)
    kind = float if problem_type == REGRESSION else int
    table = table.assign(**{column: values.astype(kind) for column, values in numbers.items()})
    return table, tuple(columns), order_classes(columns, problem_type, positive_class)


def _warn_of_missing(values: pd.Series, column: str, data: object) -> None:
    """Warn of words such as `unknown`, and of numbers such as -999 far from all others, which may be no labels."""
    counts = values.value_counts()
    numbers = pd.to_numeric(pd.Series(counts.index), errors="coerce").sort_values().to_numpy()
    found = [name for name in counts.index if str(name).casefold() in NO_LABEL]
    if len(numbers) > 3 and not np.isnan(numbers).any():
        low, high = numbers[[0, -2]], numbers[[1, -1]]
        spans = (numbers[-1] - high[0], low[1] - numbers[0])
        for number, gap, span in zip(numbers[[0, -1]], high - low, spans, strict=True):
            if MISSING_NUMBER.fullmatch(f"{number:g}") and gap > span:
                found += [name for name in counts.index if float(name) == number]
    if found:
        message = "%s: %s in column %s (%d images) is taken for a label; if it stands for none, remove these rows"
        logger.warning(message, data, join_names(f"{name}" for name in found), column, counts[found].sum())


def _stated_order(values: pd.Series) -> tuple[str, ...] | None:
    """Classes in the order that an ordered categorical, or a `ClassLabel`, states; None where there is none."""
    if not getattr(values.dtype, "ordered", False):
        return None
    names = as_text(pd.Series(values.dtype.categories))
    return tuple(names[names.isin(as_text(values))])


def names_for_unnamed(given: Sequence[str], labels: Sequence[str], data: object) -> tuple[str, ...]:
    """Names of the classes of a model that only counts them, `LABEL_0` and so on, as transformers and PEFT do.

    Numbers from 0 are the places themselves. Other labels, if there are as many, are taken to have been sorted, as
    torchvision and datasets sort folders, with a warning.

    Raises:
        BadDataError: other labels than that, or names of which it is not clear how they were sorted.
    """
    places = tuple(str(place) for place in range(len(given)))
    if set(labels) <= set(given):
        return tuple(given)
    if set(labels) <= set(places):
        return places
    names = in_order(labels)
    if len(names) == len(given) and list(names) == sorted(names):
        logger.warning(
            "%s: the model has no names of classes; its outputs are taken for %s, in this order: write them into its "
            "config.json as id2label and label2id to be sure", data, join_names(names, 50),
        )  # fmt: skip
        return names
    raise BadDataError(
        f"{data}: label(s) {join_names(names)} do not fit the {len(given)} classes of the model, which has no names "
        "for them; give numbers from 0, or write the names into its config.json as id2label and label2id",
        source=data,
    )


def unfold_lists(
    table: pd.DataFrame, columns: Sequence[str], problem_type: str | None, class_names: Sequence[str] | None, data: str
) -> tuple[pd.DataFrame, tuple[str, ...], str | None]:
    """Replace one column of lists by a column of 0 and 1 for each finding, or by classes where each list has one.

    Args:
        table: with `id` and the label columns.
        columns: names of the label columns.
        problem_type: that was asked for, or None.
        class_names: of a model, or None.
        data: source of the table, for errors.

    Returns:
        The table, its label columns and the problem type; unchanged where there are no lists. Lists of 0 and 1 of one
        length are multi-hot, of findings called such as `labels_0` where no `class_names` are given.

    Raises:
        BadDataError: lists beside other values, or (`rows`) text that looks like several findings of one image.
        BadArgumentError: several findings where one class is asked for.
    """
    if len(columns) != 1 or problem_type == REGRESSION or columns[0] not in table:
        return table, tuple(columns), problem_type
    (column,) = columns
    values = table[column]
    lists = [_as_list(value) for value in values]
    if not any(found is not None for found in lists):
        separator = None if pd.api.types.is_numeric_dtype(values) else _separator(as_text(values).dropna().unique())
        if problem_type == MULTI_LABEL and not pd.api.types.is_numeric_dtype(values):
            lists = [None if pd.isna(value) else str(value).split(separator or "\0") for value in values]
        elif problem_type is None and separator:
            combined = as_text(values).fillna("").str.contains(separator, regex=False)
            raise BadDataError(
                f"{data}: labels such as {values[combined].iloc[0]!r} look like several findings of one image; pass "
                "`problem_type='multi_label_classification'`, or `problem_type='single_label_classification'` if each "
                "is a class",
                rows=table.loc[combined, "id"], source=data,
            )  # fmt: skip
        else:
            return table, tuple(columns), problem_type
    check_filled(table, column, data)
    others = [found is None for found in lists]
    if any(others):
        message = f"{data}: column {column!r} holds lists beside other values ({join_names(values[others].unique())})"
        raise BadDataError(message, rows=table.loc[others, "id"], source=data)
    lengths = {len(found) for found in lists}
    hot = len(lengths) == 1 and max(lengths) > 1 and {str(value) for found in lists for value in found} <= _BINARY
    if hot:
        given = class_names if class_names is not None and len(class_names) in lengths else None
        names = given or [f"{column}_{place}" for place in range(max(lengths))]
        lists = [[name for name, is_set in zip(names, found, strict=True) if float(is_set)] for found in lists]
    else:
        lists = [[text for text in as_text(pd.Series(found, dtype=object)) if text] for found in lists]
        present = {name for found in lists for name in found}
        stated = [name for name in table.attrs.get(column, ()) if name in present]
        names = class_names or (stated if present <= set(stated) else in_order(present))
    if problem_type == SINGLE_LABEL or (problem_type is None and not hot and lengths == {1}):
        if {len(found) for found in lists} != {1}:
            message = f"{data}: column {column!r} holds lists of several findings, which `problem_type` must allow"
            raise BadArgumentError(message, field="problem_type", value=problem_type, accepted=[MULTI_LABEL])
        return table.assign(**{column: [found[0] for found in lists]}), tuple(columns), SINGLE_LABEL
    unknown = {name for found in lists for name in found} - set(names)
    if unknown:
        message = (
            f"{data}: label(s) {join_names(sorted(unknown))} are unknown; the classes are {join_names(names, 50)}"
        )
        raise BadDataError(message, rows=table["id"][[not unknown.isdisjoint(found) for found in lists]], source=data)
    found_in = {name: [int(name in found) for found in lists] for name in names}
    return table.drop(columns=column).assign(**found_in), tuple(names), MULTI_LABEL


_BINARY = {"0", "1", "0.0", "1.0", "True", "False"}


def _as_list(value: Any) -> list[Any] | None:
    if isinstance(value, (list, tuple, np.ndarray)):
        return list(value)
    if isinstance(value, str) and HOT.fullmatch(value):
        return re.findall("[01]", value)
    if isinstance(value, str) and re.fullmatch(r"\s*[\[({].*[\])}]\s*", value):
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found = re.findall(r"[^\s,'\"\[\](){}]+", value)
        return sorted(found) if isinstance(found, set) else list(found) if isinstance(found, (list, tuple)) else None
    return None


def _separator(names: Iterable[str]) -> str | None:
    """Separator of the findings of a combined label, such as "D|G"; None where no label looks combined."""
    names = set(names)
    for separator in SEPARATORS:
        parts = [[part.strip() for part in name.split(separator) if part.strip()] for name in names]
        combined = [part for found in parts if len(found) > 1 for part in found]
        if combined and (separator in ALWAYS_SEPARATE or names.issuperset(combined)):
            return separator
    return None


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
    if patient_column == BY_NAME:
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
    folders = table["id"].map(posixpath.dirname)
    labels = [name for name in label_columns if not pd.api.types.is_float_dtype(table[name])]
    parts = len(table[[*labels, *(["split"] if "split" in table else [])]].astype(str).drop_duplicates())
    if folders.nunique() > max(MANY, 2 * parts) and len(table) >= 2 * folders.nunique():
        what = f"the images lie in {folders.nunique()} folders, such as {folders.iloc[0]}"
        _warn_of(what, folders, table, "", data)
    for name in table.columns.difference([*label_columns, "id", "image", "split", "patient_id"], sort=False):
        values = table[name]
        if not pd.api.types.is_float_dtype(values) and _look_like_patients(as_text(values)):
            _warn_of(f"the values of column {str(name).strip()!r} occur a few times each", values, table, name, data)


def _look_like_patients(values: pd.Series) -> bool:
    """Whether values occur a few times each: at least half of them in pairs, or more evenly than those of chance."""
    counts = values.value_counts()
    images = values.map(counts)
    if len(counts) < MANY or images.max() > 2 * MANY:
        return False
    # Pearson's statistic of equally likely values.
    even = counts.mean() >= 2 and chdtr(len(counts) - 1, counts.var() * (len(counts) - 1) / counts.mean()) < 0.001
    return bool((images == 2).mean() >= 0.5 or even)


def _warn_of(what: str, patients: pd.Series, table: pd.DataFrame, option: object, data: object) -> None:
    # Images of a val split that is still to be taken from train would be dealt apart.
    splits = table["split"] if "split" in table else pd.Series(dtype=object)
    if (splits == "val").any() and (splits.groupby(patients).nunique() <= 1).all():
        return
    column = str(option).strip()
    fix = f"pass `patient_column='{column}'`" if column else "name the patients in a column patient_id"
    logger.warning(
        "%s: no patients are given, and %s; if each of these is one patient, %s, or one patient's images lie in two "
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
