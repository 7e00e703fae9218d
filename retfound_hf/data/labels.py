"""What the label columns of a table mean: classes, findings that may occur together, or numbers."""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..evaluation.inputs import PROBLEM_TYPES, ProblemType
from ..runs.errors import RetFoundError
from .checks import check_labels_present, check_spelling, listed


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
        raise RetFoundError(f"{problem_type} takes one label column, not {len(columns)} ({listed(columns)})")
    if problem_type is not None:
        return problem_type
    if len(columns) > 1:
        return "multi_label_classification"
    values = table[columns[0]].dropna()
    if pd.api.types.is_float_dtype(values) and not np.equal(np.mod(values, 1), 0).all():
        raise RetFoundError(
            f"{data}: column {columns[0]!r} holds {values.nunique()} different values such as {listed(values[:3])}; "
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
                f"{data}: label(s) {listed(unknown)} are unknown to the model, whose classes are {listed(names, 50)}; "
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
                f"{data}: column {column!r} holds {listed(found)} (images {listed(table.loc[wrong, 'id'])}), where "
                f"only {accepted} are accepted"
            )
    kind = float if problem_type == "regression" else int
    return table.assign(**{column: values.astype(kind) for column, values in numbers.items()}), tuple(columns)


def ordered(names: Sequence[str] | set[str]) -> tuple[str, ...]:
    """Names sorted as text, or by value where all of them are numbers ("2" before "10")."""
    if all(re.fullmatch(r"[+-]?\d+(\.\d+)?", name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))
