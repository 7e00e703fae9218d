"""What is written about a model on a set: `metrics.json`, `predictions.csv`, plots, and a table for the terminal."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.metrics import compute_metrics
from ..evaluation.plots import plot_classification, plot_regression
from ..runs.files import whole_file, write_json


def write_report(
    output_dir: str | Path,
    rows: pd.DataFrame,
    targets: np.ndarray,
    scores: np.ndarray,
    problem_type: str,
    class_names: tuple[str, ...],
    plots: bool = True,
) -> dict[str, Any]:
    """Write the three kinds of files and return the metrics.

    Args:
        rows: one per image, with `id` and, where known, `patient_id`.
        targets, scores: as `evaluation.metrics.compute_metrics` takes them.
        plots: they take longer than a small model does.
    """
    output_dir = Path(output_dir)
    metrics = compute_metrics(problem_type, targets, scores, class_names)
    table = predictions_table(rows, targets, scores, problem_type, class_names)
    with whole_file(output_dir / "predictions.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.9g")
    if plots and problem_type == "regression":
        plot_regression(targets, scores, class_names, output_dir / "plots")
    elif plots:
        plot_classification(targets, scores, class_names, problem_type, output_dir / "plots")
    write_json(output_dir / "metrics.json", metrics)
    return metrics


def predictions_table(
    rows: pd.DataFrame, targets: np.ndarray | None, scores: np.ndarray, problem_type: str, class_names: tuple[str, ...]
) -> pd.DataFrame:
    """`id`, `label` unless there are no targets, `prediction`, `prob/<class>`..., `patient_id` where known.

    Multi-label cells list the labels that hold, joined by `|`. Regression has no probabilities, and with several
    targets `label/<target>` and `prediction/<target>`.
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
    if "patient_id" in rows and rows["patient_id"].notna().any():
        columns["patient_id"] = rows["patient_id"].to_numpy()
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None})


def _joined(names: np.ndarray, holds: np.ndarray) -> list[str]:
    return ["|".join(names[row]) for row in holds]
