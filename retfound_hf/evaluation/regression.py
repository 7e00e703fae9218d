"""Metrics of predicted numbers."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..runs.errors import RetFoundError
from .inputs import check_regression
from .ranking import mean_of_defined


def regression_metrics(
    labels: Any, predictions: Any, target_names: Sequence[str] | None = None
) -> dict[str, float | None]:
    """Errors and correlations, in the units of the labels.

    Args:
        labels, predictions: float (N,) or (N, T).
        target_names: T names; `target_0`... when None.

    Returns:
        `mae`, `mse`, `rmse`, `r2` (1 - residual / total sum of squares), `pearson`, `spearman` and `loss` (= `mse`);
        with several targets the means over them, and every metric per target as `mae/<target>`... None, with one
        warning, for `r2` and correlations of a target (or, for correlations, of a prediction) that does not vary.

    Raises:
        RetFoundError: shapes that do not fit, or values that are not finite.
    """
    labels, predictions = check_regression(labels, predictions)
    targets = labels.shape[1]
    names = list(target_names) if target_names is not None else [f"target_{index}" for index in range(targets)]
    if len(names) != targets:
        raise RetFoundError(f"{len(names)} target names {names} for {targets} targets; give one per target")
    errors = predictions - labels
    squares = (errors**2).mean(axis=0)
    per_target = {
        "mae": np.abs(errors).mean(axis=0),
        "mse": squares,
        "rmse": np.sqrt(squares),
        "r2": 1 - squares / np.where(_varies(labels), labels.var(axis=0), np.nan),
        "pearson": _correlation(labels, predictions),
        "spearman": _correlation(_ranks(labels), _ranks(predictions)),
    }
    _warn_undefined(per_target, names)
    values = {name: mean_of_defined(value) for name, value in per_target.items()}
    values["loss"] = values["mse"]
    if targets > 1:
        for name, value in per_target.items():
            values |= {f"{name}/{target}": mean_of_defined(value[[i]]) for i, target in enumerate(names)}
    return values


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation of the columns, (T,), NaN where one does not vary."""
    defined = _varies(first) & _varies(second)
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    norms = np.sqrt((first**2).sum(axis=0)) * np.sqrt((second**2).sum(axis=0))
    return np.clip((first * second).sum(axis=0) / np.where(defined, norms, np.nan), -1, 1)


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata  # ties share their mean rank, as Spearman's correlation asks

    return rankdata(values, axis=0)


def _varies(values: np.ndarray) -> np.ndarray:
    """bool (T,). Not the variance, which rounding leaves above 0 for many a constant."""
    return np.ptp(values, axis=0) > 0


def _warn_undefined(per_target: dict[str, np.ndarray], names: Sequence[str]) -> None:
    lacking = [metric for metric, values in per_target.items() if np.isnan(values).any()]
    if lacking:
        targets = [name for index, name in enumerate(names) if np.isnan(per_target["pearson"][index])]
        warnings.warn(
            f"{', '.join(lacking)} are undefined for {', '.join(targets)}: its labels or predictions do not vary",
            stacklevel=3,
        )
