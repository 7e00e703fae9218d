"""Tables beside the metrics: intervals, calibration, subgroups."""

from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.bands import column_groups
from ..evaluation.calibration import confidence_and_correctness, expected_calibration_error
from ..evaluation.estimate import Estimate
from ..evaluation.inputs import check_classification
from ..evaluation.recalibration import calibration_line
from ..evaluation.subgroups import subgroup_metrics
from .report_arguments import ReportArguments


def intervals_table(estimates: dict[str, Estimate]) -> pd.DataFrame:
    """`metric`, `value`, `low`, `high`, `n` (patients), `undefined` (share of resamples), `method`."""
    return pd.DataFrame(
        [{"metric": name, **_cells(found), "method": found.method} for name, found in estimates.items()]
    )


def calibration_table(
    targets: np.ndarray, scores: np.ndarray, class_names: tuple[str, ...], problem_type: str, patients: Any
) -> pd.DataFrame:
    """A row per class, and one (`all`) for the predicted class, or for all labels pooled.

    `ece` in bins of equal width and `ece_equal_mass` in bins of as many rows; `slope` and `intercept` of
    `evaluation.recalibration` with intervals, by class.
    """
    _, scores, truth = check_classification(targets, scores, class_names, problem_type)
    sides = {name: (scores[:, column], truth[:, column]) for column, name in enumerate(class_names)}
    sides["all"] = confidence_and_correctness(truth, scores, problem_type == "single_label_classification")
    rows = []
    for name, (confidence, correct) in sides.items():
        row: dict[str, Any] = {"class": name, "positives": int(correct.sum()), "n": len(correct)}
        row["ece"] = expected_calibration_error(confidence, correct)
        row["ece_equal_mass"] = expected_calibration_error(confidence, correct, equal_mass=True)
        if name != "all":
            line = calibration_line(correct, confidence, patients)
            for part, found in (("slope", line.slope), ("intercept", line.intercept)):
                row |= {part: found.value, f"{part}_low": found.low, f"{part}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def subgroups_table(
    rows: pd.DataFrame,
    targets: np.ndarray,
    scores: np.ndarray,
    class_names: tuple[str, ...],
    problem_type: str,
    report: ReportArguments,
) -> pd.DataFrame:
    """A row per column, group and metric, and a row per column and metric for the gap (`A - B`), with its p value."""
    found: list[dict[str, Any]] = []
    for column, edges in report.subgroups.items():
        groups, gaps = subgroup_metrics(
            problem_type, targets, scores, class_names, column_groups(rows[column], edges), rows["patient_id"],
            resamples=report.resamples,
        )  # fmt: skip
        for group in groups:
            for metric, estimate in group.metrics.items():
                found.append({"column": column, "group": group.name, "rows": group.rows, "metric": metric,
                              **_cells(estimate), "p_value": None})  # fmt: skip
        for gap in gaps:
            group = f"{gap.first} - {gap.second}" if gap.first else gap.comparison.difference.method
            found.append({"column": column, "group": group, "rows": len(rows),
                          "metric": gap.metric, **_cells(gap.comparison.difference),
                          "p_value": gap.comparison.p_value})  # fmt: skip
    return pd.DataFrame(found)


def _cells(estimate: Estimate) -> dict[str, Any]:
    names = ("value", "low", "high", "n", "undefined")
    return {name: getattr(estimate, name) for name in names}
