"""Predictions of a job as the arrays that `evaluation` takes, at the level of images, eyes or patients."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.levels import aggregate, units_of
from .settings import Reporting


@dataclass(frozen=True)
class Outcomes:
    """What was to be predicted, and what was.

    Attributes:
        problem_type, labels, scores, class_names: as `evaluation.metrics.compute_metrics` takes them.
        patients: (cases,) names, None where unknown.
        first: (cases,) row of the predictions that a case starts with, for what else is known of it.
    """

    problem_type: str
    labels: np.ndarray
    scores: np.ndarray
    class_names: tuple[str, ...]
    patients: np.ndarray | None
    first: np.ndarray


def read_outcomes(
    predictions: pd.DataFrame, task: Mapping[str, Any], reporting: Reporting, eyes: Any = None
) -> Outcomes:
    """Labels and scores of a `predictions.csv`, joined to cases as `reporting` asks.

    Args:
        predictions, task: see `folder.StudyResults.predictions` and `task`.
        eyes: (images,) sides, for the level `eye`.
    """
    kind, names = task["problem_type"], tuple(task["class_names"])
    labels, scores = _arrays(predictions, kind, names)
    known = "patient_id" in predictions
    patients = predictions["patient_id"].where(predictions["patient_id"] != "").to_numpy(object) if known else None
    first = np.arange(len(predictions))
    if reporting.level != "image":
        units = units_of(reporting.level, patients, eyes)
        labels, scores = aggregate(kind, labels, scores, units, reporting.aggregation, reporting.label_conflicts)
        first = np.unique(units, return_index=True)[1]
        patients = patients[first]
    return Outcomes(kind, labels, scores, names, patients, first)


def _arrays(predictions: pd.DataFrame, kind: str, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    if kind == "regression":
        columns = [("label", "prediction")] if len(names) == 1 else [(f"label/{n}", f"prediction/{n}") for n in names]
        labels, scores = (predictions[[pair[side] for pair in columns]].to_numpy(np.float64) for side in (0, 1))
        return (labels[:, 0], scores[:, 0]) if len(names) == 1 else (labels, scores)
    scores = predictions[[f"prob/{name}" for name in names]].to_numpy(np.float64)
    if kind == "single_label_classification":
        return predictions["label"].map({name: index for index, name in enumerate(names)}).to_numpy(np.int64), scores
    shown = [set(text.split("|")) for text in predictions["label"]]
    return np.array([[name in found for name in names] for found in shown], np.int64), scores
