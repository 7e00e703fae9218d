"""Checks that every metric and plot shares: labels and scores as clean arrays, or one clear line."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..errors import RetFoundError
from ..vocabulary import MULTI_LABEL, PROBLEM_TYPES, SINGLE_LABEL

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
# Rows of a softmax that ran in bfloat16 (8 bits of mantissa) miss a sum of one by up to about this much.
SUM_TOLERANCE = 0.02


def check_problem_type(problem_type: str, accepted: Sequence[str] = tuple(PROBLEM_TYPES)) -> None:
    """Raise RetFoundError unless `problem_type` is one of `accepted`."""
    if problem_type not in accepted:
        raise RetFoundError(f"problem_type={problem_type!r} is not accepted here; accepted: {', '.join(accepted)}")


def check_classification(
    labels: Any, probabilities: Any, class_names: Sequence[str], problem_type: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and probabilities of a classifier, checked.

    Args:
        labels: (N,) integer classes, or (N, C) of 0 and 1 for multi-label.
        probabilities: (N, C), softmax or sigmoid outputs in [0, 1].
        class_names: C names.
        problem_type: `single_label_classification` or `multi_label_classification`.

    Returns:
        labels, int64, of the shape given; probabilities, float64 (N, C); truth, bool (N, C), one column per class.

    Raises:
        RetFoundError: shapes that do not fit, labels outside the classes, values that are no probabilities.
    """
    check_problem_type(problem_type, (SINGLE_LABEL, MULTI_LABEL))
    single = problem_type == "single_label_classification"
    names = len(class_names)
    if len(set(class_names)) != names or names < (2 if single else 1):
        need = "at least 2 different names" if single else "different names"
        raise RetFoundError(f"class_names={list(class_names)} does not fit; {problem_type} needs {need}")
    probabilities = _numbers("probabilities", probabilities)
    raw = _numbers("labels", labels)
    rows = len(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] != names:
        raise RetFoundError(f"probabilities have shape {probabilities.shape}; (N, {names}) fits the {names} classes")
    expected = (rows,) if single else (rows, names)
    if raw.shape != expected:
        raise RetFoundError(f"labels have shape {raw.shape}; {expected} fits {rows} rows and {problem_type}")
    highest = names - 1 if single else 1
    bad = (raw != np.floor(raw)) | (raw < 0) | (raw > highest)
    if bad.any():
        raise RetFoundError(f"label {raw[bad][0]:g} is not accepted; labels are whole numbers from 0 to {highest}")
    if probabilities.min() < 0 or probabilities.max() > 1:
        extreme = probabilities.flat[np.abs(probabilities - 0.5).argmax()]
        activation = "softmax" if single else "sigmoid"
        raise RetFoundError(f"probability {extreme:g} is outside [0, 1]; apply {activation} to logits first")
    if single and (off := np.abs(probabilities.sum(axis=1) - 1)).max() > SUM_TOLERANCE:
        row = int(off.argmax())
        raise RetFoundError(
            f"probabilities of row {row} sum to {probabilities[row].sum():.4g}; single-label rows sum to 1 (softmax)"
        )
    labels = raw.astype(np.int64)
    truth = labels[:, None] == np.arange(names) if single else labels.astype(bool)
    return labels, probabilities, truth


def check_regression(labels: Any, predictions: Any) -> tuple[np.ndarray, np.ndarray]:
    """Labels and predictions (N,) or (N, T) as float64 (N, T); RetFoundError where their shapes do not fit."""
    labels, predictions = _numbers("labels", labels), _numbers("predictions", predictions)
    columns = [array[:, None] if array.ndim == 1 else array for array in (labels, predictions)]
    if columns[0].ndim != 2 or columns[0].shape != columns[1].shape:
        raise RetFoundError(
            f"labels have shape {labels.shape} and predictions {predictions.shape}; both must be (N,) or (N, targets)"
        )
    return columns[0], columns[1]


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise RetFoundError(f"{name} must be an array of numbers: {error}") from error
    if array.size == 0 or array.ndim == 0:
        raise RetFoundError(f"{name} have shape {array.shape}; at least one row is needed")
    if not np.isfinite(array).all():
        count = int((~np.isfinite(array)).sum())
        raise RetFoundError(f"{name} hold {count} values that are NaN or infinite; only finite numbers are accepted")
    return array
