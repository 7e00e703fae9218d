"""Label columns: what they mean, the order of classes, and several findings in one column."""

import ast
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..errors import BadArgumentError, BadDataError, join_names, require
from ..vocabulary import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from .tables import as_text, check_filled, check_spelling

MANY_GRADES = 10  # different whole numbers, above which they may be measurements
SEPARATORS = ("|", ";", ",", "+", "&", "/")


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
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Bring the label columns to one type: text, 0/1 integers, or floats.

    Args:
        table: with `id` and the label columns.
        columns: names of the label columns.
        problem_type: what the labels mean.
        class_names: of a model whose classes the labels must be, or None.
        data: source of the table, for errors.

    Returns:
        The table, and the class names: for single-label the given ones, else those that occur, numbers in numeric
        order; for multi-label and regression the columns.

    Raises:
        BadDataError: a missing, unknown or non-numeric label, or a class spelled in two ways.
    """
    for column in columns:
        check_filled(table, column, data)
    if problem_type == SINGLE_LABEL:
        labels, kind = as_text(table[columns[0]]), table[columns[0]].dtype
        stated = as_text(pd.Series(kind.categories)) if getattr(kind, "ordered", False) else None
        names = tuple(class_names or (in_order(labels.unique()) if stated is None else stated[stated.isin(labels)]))
        if class_names is None:
            check_spelling(names, data)
        unknown = in_order(set(labels) - set(names))
        if unknown:
            raise BadDataError(
                f"{data}: label(s) {join_names(unknown)} are unknown; the classes are "
                f"{join_names(names, 50)}; rename them, or remove their images",
                rows=table.loc[labels.isin(unknown), "id"], source=data,
            )  # fmt: skip
        return table.assign(**{columns[0]: labels}), names
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
    kind = float if problem_type == REGRESSION else int
    return table.assign(**{column: values.astype(kind) for column, values in numbers.items()}), tuple(columns)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names sorted by value where all are numbers or each holds one ("stage 2" before "stage 10"), else naturally."""
    names = sorted(names)
    if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", name) for name in names):
        return tuple(sorted(names, key=float))
    numbers = [re.findall(r"\d+", name) for name in names]
    if all(len(found) == 1 for found in numbers) and len({int(found[0]) for found in numbers}) == len(names):
        return tuple(sorted(names, key=lambda name: int(re.findall(r"\d+", name)[0])))
    pieces = {name: re.split(r"(\d+)", name) for name in names}
    return tuple(sorted(names, key=lambda name: [int(part) if n % 2 else part for n, part in enumerate(pieces[name])]))


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
        names = class_names or in_order({name for found in lists for name in found})
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
    if isinstance(value, str) and re.fullmatch(r"\s*[\[(].*[\])]\s*", value):
        try:
            found = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found = re.findall(r"[^\s,'\"\[\]]+", value)
        return list(found) if isinstance(found, (list, tuple)) else None
    return None


def _separator(names: Iterable[str]) -> str | None:
    """What divides the findings of a combined label, such as "D|G"; None where no label looks combined."""
    names = list(names)
    for separator in SEPARATORS:
        combined = [name for name in names if separator in name.strip(separator)]
        parts = {part.strip() for name in combined for part in name.split(separator)}
        if combined and (separator in "|;" or parts <= set(names)):
            return separator
    return None
