"""Numbers as a reader takes them in: three decimals, an interval in brackets, small p values by their bound."""

import math
from collections.abc import Iterable
from typing import Any

METRICS = {
    "auroc": "AUROC", "auprc": "AUPRC", "accuracy": "Accuracy", "balanced_accuracy": "Balanced accuracy",
    "f1_macro": "F1", "precision_macro": "Precision", "recall_macro": "Recall", "kappa": "Kappa",
    "quadratic_kappa": "Quadratic kappa", "mcc": "MCC", "hamming": "Hamming loss", "jaccard": "Jaccard", "ece": "ECE",
    "brier": "Brier score", "loss": "Log loss", "mae": "MAE", "mse": "MSE", "rmse": "RMSE", "r2": "R²",
    "pearson": "Pearson's r", "spearman": "Spearman's ρ",
}  # fmt: skip


def metric_name(metric: str) -> str:
    """As a heading says it."""
    name, _, label = metric.partition("/")
    return METRICS.get(name, name) + (f", {label}" if label else "")


def is_missing(value: Any) -> bool:
    """Whether a cell of a table holds no number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: Any, digits: int = 3) -> str:
    """Such as `0.912`; an en dash where there is none."""
    return "–" if is_missing(value) else f"{value:.{digits}f}".replace("-", "−")


def interval(low: Any, high: Any) -> str:
    """Such as `0.884 to 0.935`."""
    return "–" if is_missing(low) and is_missing(high) else f"{number(low)} to {number(high)}"


def p_value(value: Any) -> str:
    """Such as `0.031`, or `<0.001`."""
    return "<0.001" if not is_missing(value) and value < 0.001 else number(value)


def share(value: float) -> str:
    """Such as `30%`."""
    return f"{100 * value:g}%"


def span(counts: Iterable[int]) -> str:
    """Such as `5`, or `1 to 5`."""
    low, high = min(found := [int(count) for count in counts]), max(found)
    return f"{low}" if low == high else f"{low} to {high}"


def duration(seconds: Any) -> str:
    """Such as `0.4 s`, `48 s`, `12 min`, `3.5 h`."""
    if is_missing(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
