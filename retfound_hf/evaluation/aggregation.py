"""Aggregation from images to eyes to patients: one score and one label for all images of a unit."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..errors import RetFoundError
from .validation import ProblemType

LEVELS = ("image", "eye", "patient")
Level = Literal["image", "eye", "patient"]
Aggregate = Literal["mean", "max"]
Conflicts = Literal["error", "max"]


def units_of(level: Level, patients: Sequence[Any], eyes: Sequence[Any] | None = None) -> np.ndarray:
    """Number the units of a level, int64 (N,), in the order in which they first come.

    Args:
        patients: (N,) names of patients.
        eyes: (N,) sides, for the level "eye".

    Raises:
        RetFoundError: an image whose patient, or eye, is unknown.
    """
    import pandas as pd

    if level == "image":
        return np.arange(len(patients))
    columns = {"patient_id": patients} if level == "patient" else {"patient_id": patients, "eye": eyes}
    for name, values in columns.items():
        missing = len(patients) if values is None else int(pd.isna(np.asarray(values, dtype=object)).sum())
        if missing:
            raise RetFoundError(
                f"--level {level} needs {name} for every image, and {missing} of {len(patients)} have none; fill in "
                f"the column {name}, or evaluate at another level"
            )
    table = pd.DataFrame({name: np.asarray(values, dtype=object).astype(str) for name, values in columns.items()})
    return table.groupby(list(columns), sort=False).ngroup().to_numpy(np.int64)


def aggregate(
    problem_type: ProblemType,
    labels: Any,
    scores: Any,
    units: np.ndarray,
    how: Aggregate = "mean",
    conflicts: Conflicts = "error",
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores of units from those of their images.

    Scores: `mean`, or `max`, the highest of each class over the images; single-label rows are then divided by their
    sum, so that they stay probabilities, and no class is favoured.

    Labels: those of a unit's images should agree. Where they do not, as where one eye of a patient is healthy,
    `error` says so, and `max` takes the highest: of findings and numbers what any image shows, of classes the last in
    their order, which is right for grades that rise and for nothing else.

    Args:
        problem_type, labels, scores: as `metrics.compute_metrics` takes them.
        units: (N,) from 0 on, see `units_of`.

    Raises:
        RetFoundError: labels that do not agree.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    count = int(units.max()) + 1
    if conflicts == "error" and (conflicting := count_conflicts(labels, units)):
        raise RetFoundError(
            f"the images of {conflicting} of {count} units have different labels; choose a level at which "
            "they agree, such as --level eye, or pass --label_conflicts max to take the highest label (of classes: "
            "the last in their order)"
        )
    high = _over(np.maximum, labels, units)
    if how == "max":
        merged = _over(np.maximum, scores, units)
        if problem_type == "single_label_classification":
            merged = merged / merged.sum(axis=1, keepdims=True)
        return high, merged
    sums = np.zeros((count, *scores.shape[1:]))
    np.add.at(sums, units, scores)
    return high, sums / np.bincount(units).reshape(-1, *[1] * (scores.ndim - 1))


def count_conflicts(labels: Any, units: np.ndarray) -> int:
    """Number of units whose images have different labels; arguments as `aggregate`."""
    labels = np.asarray(labels)
    differ = _over(np.maximum, labels, units) != _over(np.minimum, labels, units)
    return int(differ.reshape(len(differ), -1).any(axis=1).sum())


def _over(choose: np.ufunc, values: np.ndarray, units: np.ndarray) -> np.ndarray:
    first = np.unique(units, return_index=True)[1]
    found = values[first].copy()
    choose.at(found, units, values)
    return found
