"""What is written about a model on a set: `metrics.json`, `predictions.csv`, plots, and a table for the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.bootstrap import metric_intervals
from ..evaluation.inputs import check_classification
from ..evaluation.metrics import compute_metrics
from ..evaluation.operating_points import OperatingPoint
from ..evaluation.plots import plot_classification, plot_regression
from ..evaluation.table import INTERVAL
from ..runs.files import whole_file, write_json
from .operating_points import points_table
from .report_arguments import ReportArguments, known
from .statistics_tables import calibration_table, intervals_table, subgroups_table
from .units import to_level


def write_report(
    output_dir: str | Path,
    rows: pd.DataFrame,
    targets: np.ndarray,
    scores: np.ndarray,
    problem_type: str,
    class_names: tuple[str, ...],
    plots: bool = True,
    report: ReportArguments | None = None,
    points: Sequence[OperatingPoint] = (),
) -> dict[str, Any]:
    """Write the three kinds of files, the tables that `report` asks for, and return the metrics.

    `predictions.csv` is about images always; metrics, plots and tables are about the units of `report.level`, whose
    own predictions stand in `predictions_<level>.csv`.

    Args:
        rows: one per image, with `id` and, where known, `patient_id`, `eye` and columns of subgroups.
        targets, scores: as `evaluation.metrics.compute_metrics` takes them.
        plots: they take longer than a small model does.
        points: thresholds chosen on other images; what they reach here goes to `operating_points.csv`.
    """
    output_dir, report = Path(output_dir), report or ReportArguments()
    extra = list(report.subgroups)
    tables = {"predictions": predictions_table(rows, targets, scores, problem_type, class_names, extra)}
    rows, targets, scores = to_level(rows, targets, scores, problem_type, report)
    if report.level != "image":
        own = predictions_table(rows, targets, scores, problem_type, class_names, extra)
        tables[f"predictions_{report.level}"] = own
    metrics = compute_metrics(problem_type, targets, scores, class_names)
    patients = rows["patient_id"].to_numpy() if "patient_id" in rows else None
    if report.confidence_intervals:
        estimates = metric_intervals(problem_type, targets, scores, class_names, patients, report.resamples)
        metrics |= {f"{name}{INTERVAL}": found.interval for name, found in estimates.items() if found.interval}
        tables["intervals"] = intervals_table(estimates)
        if problem_type != "regression":
            tables["calibration"] = calibration_table(targets, scores, class_names, problem_type, patients)
    if points:
        _, checked, truth = check_classification(targets, scores, class_names, problem_type)
        tables["operating_points"] = points_table(list(points), truth, checked, class_names, patients)
    if report.subgroups:
        tables["subgroups"] = subgroups_table(rows, targets, scores, class_names, problem_type, report)
    for name, table in tables.items():
        with whole_file(output_dir / f"{name}.csv") as partial:
            table.to_csv(partial, index=False, float_format="%.9g")
    if plots and problem_type == "regression":
        plot_regression(targets, scores, class_names, output_dir / "plots")
    elif plots:
        plot_classification(targets, scores, class_names, problem_type, output_dir / "plots")
    write_json(output_dir / "metrics.json", metrics)
    return metrics


def predictions_table(
    rows: pd.DataFrame,
    targets: np.ndarray | None,
    scores: np.ndarray,
    problem_type: str,
    class_names: tuple[str, ...],
    columns_kept: Sequence[str] = (),
) -> pd.DataFrame:
    """`id`, `label` unless there are no targets, `prediction`, `prob/<class>`..., `patient_id` and `eye` where known.

    `columns_kept` of `rows` follow. Multi-label cells list the labels that hold, joined by `|`. Regression has no
    probabilities, and with several targets `label/<target>` and `prediction/<target>`.
    """
    columns: dict[str, Any] = {"id": rows["id"].to_numpy()}
    names = np.asarray(class_names, dtype=object)
    if problem_type == "single_label_classification":
        labels = None if targets is None else names[targets]
        columns |= {"label": labels, "prediction": names[scores.argmax(axis=1)]}
    elif problem_type == "multi_label_classification":
        labels = None if targets is None else _joined(names, targets > 0.5)
        columns |= {"label": labels, "prediction": _joined(names, scores >= 0.5)}
    else:
        scores = scores.reshape(len(rows), -1)
        targets = None if targets is None else targets.reshape(len(rows), -1)
        single = len(names) == 1
        for index, name in enumerate(names):
            columns["label" if single else f"label/{name}"] = None if targets is None else targets[:, index]
            columns["prediction" if single else f"prediction/{name}"] = scores[:, index]
    if problem_type != "regression":
        columns |= {f"prob/{name}": scores[:, index] for index, name in enumerate(names)}
    for name in dict.fromkeys(("patient_id", "eye", *columns_kept)):
        if known(rows, name) and name not in columns:
            columns[name] = rows[name].to_numpy()
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None})


def _joined(names: np.ndarray, holds: np.ndarray) -> list[str]:
    return ["|".join(names[row]) for row in holds]
