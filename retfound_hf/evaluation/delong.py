"""AUROC without resampling: variances by DeLong et al. (1988), clustered by patient by Obuchowski (1997)."""

from typing import Any

import numpy as np

from ..runs.errors import RetFoundError
from .estimate import Comparison, Estimate, Z
from .patients import patients_of

__all__ = ["auroc_interval", "compare_aurocs"]


def auroc_interval(truth: Any, scores: Any, patients: Any = None) -> Estimate:
    """AUROC of one classifier with DeLong's 95% interval, on the logit scale, which keeps it between 0 and 1.

    Args:
        truth: bool (N,).
        scores: float (N,), higher for more likely.
        patients: (N,) names whose rows are correlated (both eyes, repeat images); None or NaN: independent.

    Returns:
        Undefined where one outcome is absent; without interval at an AUROC of 0 or 1, where the variance is 0.
    """
    areas, covariance, count = _areas(truth, [scores], patients)
    name = _name("DeLong", patients)
    if areas is None:
        return Estimate(None, None, None, count, name)
    area, variance = float(areas[0]), float(covariance[0, 0])
    if not 0 < area < 1 or variance <= 0:
        return Estimate(area, None, None, count, name)
    logit, half = np.log(area / (1 - area)), Z * variance**0.5 / (area * (1 - area))
    low, high = 1 / (1 + np.exp(-(logit + np.array([-half, half]))))
    return Estimate(area, float(low), float(high), count, name)


def compare_aurocs(truth: Any, first: Any, second: Any, patients: Any = None) -> Comparison:
    """DeLong's test of two classifiers' AUROCs on the same rows; arguments as `auroc_interval`.

    Returns:
        first - second. Without interval and p value where the difference has no variance, as between equal rankings.
    """
    from scipy.stats import norm

    areas, covariance, count = _areas(truth, [first, second], patients)
    name = _name("DeLong", patients)
    if areas is None:
        return Comparison(Estimate(None, None, None, count, name), None, name)
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance < 1e-15:
        return Comparison(Estimate(difference, None, None, count, name), None, name)
    error = variance**0.5
    estimate = Estimate(difference, difference - Z * error, difference + Z * error, count, name)
    return Comparison(estimate, float(2 * norm.sf(abs(difference) / error)), name)


def _areas(truth: Any, scores: list[Any], patients: Any) -> tuple[np.ndarray | None, np.ndarray, int]:
    """AUROCs (K,), their covariance (K, K) and the number of patients; None for AUROCs that are undefined."""
    truth = np.asarray(truth, dtype=bool)
    table = np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or table.shape[1:] != truth.shape or not len(truth):
        raise RetFoundError(f"truth {truth.shape} and scores {table.shape[1:]} must both be (N,), N > 0")
    if not np.isfinite(table).all():
        raise RetFoundError("scores hold values that are NaN or infinite; only finite numbers are accepted")
    units = patients_of(patients, len(truth))
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return None, np.empty((0, 0)), units.count
    placements = np.array([_placements(truth, row) for row in table])
    areas = placements[:, truth].mean(axis=1)
    deviations = placements - areas[:, None]
    # Sums over each patient's rows; alone, each row is a patient, and DeLong's variance is what comes out.
    with_positive = len(np.unique(units.row[truth]))
    with_negative = len(np.unique(units.row[~truth]))
    if min(with_positive, with_negative) < 2:
        return areas, np.zeros((len(table), len(table))), units.count
    sums = np.array([
        [np.bincount(units.row[side], row[side], units.count) for row in deviations] for side in (truth, ~truth)
    ])  # fmt: skip
    own = sums[0] @ sums[0].T * with_positive / (with_positive - 1) / positives**2
    other = sums[1] @ sums[1].T * with_negative / (with_negative - 1) / negatives**2
    shared = sums[0] @ sums[1].T * units.count / (units.count - 1) / (positives * negatives)
    return areas, own + other + shared + shared.T, units.count


def _placements(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each row the share of rows of the other outcome that it is ranked rightly against; ties count half."""
    from scipy.stats import rankdata

    everyone = rankdata(scores)
    below = np.empty(len(scores))  # rows of the other outcome with a lower score, ties half
    for side in (truth, ~truth):
        below[side] = (everyone[side] - rankdata(scores[side])) / (~side).sum()
    return np.where(truth, below, 1 - below)


def _name(test: str, patients: Any) -> str:
    return test if patients is None else f"{test}, clustered by patient (Obuchowski)"
