"""Rows of images to rows of eyes or patients."""

import numpy as np
import pandas as pd

from ..evaluation.levels import aggregate, units_of
from .report_arguments import ReportArguments


def to_level(
    rows: pd.DataFrame, targets: np.ndarray, scores: np.ndarray, problem_type: str, report: ReportArguments
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Rows, targets and scores of the units that the report is about.

    Args:
        rows: one per image, with `patient_id` and, for eyes, `eye`.
        targets, scores: as `evaluation.metrics.compute_metrics` takes them.

    Returns:
        One row per unit, in the order of their first images; `id` is `patient` or `patient/eye`. Other columns keep
        what all images of the unit share, and are missing where they differ.

    Raises:
        RetFoundError: unknown patients or eyes, or labels that do not agree (see `evaluation.levels`).
    """
    if report.level == "image":
        return rows, targets, scores
    units = units_of(report.level, rows["patient_id"], rows.get("eye"))
    targets, scores = aggregate(problem_type, targets, scores, units, report.aggregate, report.label_conflicts)
    others = rows.drop(columns=[name for name in ("id", "image") if name in rows])
    grouped = others.groupby(units, sort=True)
    shared = grouped.first().where(grouped.nunique() <= 1)
    ids = shared["patient_id"].astype(str)
    return shared.assign(id=ids + "/" + shared["eye"].astype(str) if report.level == "eye" else ids), targets, scores
