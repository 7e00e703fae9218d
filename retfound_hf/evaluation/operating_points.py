"""Thresholds on a class's probability: chosen on one set (validation), measured on another (test)."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..runs.errors import RetFoundError
from .bootstrap import RESAMPLES, bootstrap
from .estimate import Estimate
from .patients import patients_of
from .proportions import share_interval

Criterion = Literal["sensitivity", "specificity", "youden"]
MEASURES = ("sensitivity", "specificity", "ppv", "npv")


@dataclass(frozen=True)
class OperatingPoint:
    """A rule: call an image positive for `label` from `threshold` on, chosen so that `criterion` reaches `target`."""

    label: str
    criterion: Criterion
    target: float | None
    threshold: float


def choose_threshold(truth: Any, scores: Any, criterion: Criterion, target: float | None = None) -> float:
    """The threshold that reaches a sensitivity with the best specificity, or the reverse; or Youden's best sum.

    Thresholds lie half-way between neighbouring scores, so that new ones near them fall on the likelier side.

    Args:
        truth: bool (N,), with both outcomes.
        scores: float (N,).
        target: above 0, at most 1; None for `youden`.

    Raises:
        RetFoundError: one outcome only, or a target that is none.
    """
    truth, scores = np.asarray(truth, bool), np.asarray(scores, np.float64)
    if truth.all() or not truth.any():
        raise RetFoundError("a threshold needs images with and images without the class; these are all of one kind")
    if criterion != "youden" and not (target is not None and 0 < target <= 1):
        raise RetFoundError(f"a {criterion} of {target} cannot be asked for; give one above 0 and at most 1")
    values = np.unique(scores)
    candidates = np.r_[values[0], (values[1:] + values[:-1]) / 2, np.nextafter(values[-1], np.inf)]
    sensitivity = 1 - np.searchsorted(np.sort(scores[truth]), candidates, side="left") / truth.sum()
    specificity = np.searchsorted(np.sort(scores[~truth]), candidates, side="left") / (~truth).sum()
    # Rounding must not turn 9 of 10 away from a target of 0.9.
    if criterion == "sensitivity":
        return float(candidates[np.flatnonzero(sensitivity >= target - 1e-9)[-1]])
    if criterion == "specificity":
        return float(candidates[np.flatnonzero(specificity >= target - 1e-9)[0]])
    return float(candidates[(sensitivity + specificity).round(12).argmax()])


def measure_threshold(truth: Any, scores: Any, threshold: float, patients: Any = None) -> dict[str, Estimate]:
    """`sensitivity`, `specificity`, `ppv` and `npv` of a threshold that was chosen elsewhere, with 95% intervals.

    Predictive values are those at the prevalence of this set.

    Args:
        truth: bool (N,).
        scores: float (N,); positive from `threshold` on.
        patients: (N,) names, None or NaN where unknown.
    """
    truth, positive = np.asarray(truth, bool), np.asarray(scores, np.float64) >= threshold
    names = np.arange(len(truth)) if patients is None else np.asarray(patients, dtype=object)
    sides = {"sensitivity": (truth, positive), "specificity": (~truth, ~positive),
             "ppv": (positive, truth), "npv": (~positive, ~truth)}  # fmt: skip
    return {name: share_interval(hits[among], names[among]) for name, (among, hits) in sides.items()}


def sensitivity_at_specificity(
    truth: Any, scores: Any, specificity: float, patients: Any = None, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Height of the ROC curve at a specificity, with an interval that holds the choice of the threshold as well.

    A description of the ranking on this set; for a rule to use, choose the threshold on other data.
    """
    truth, scores = np.asarray(truth, bool), np.asarray(scores, np.float64)
    if not 0 <= specificity <= 1:
        raise RetFoundError(f"specificity {specificity} must be from 0 to 1")
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        drawn = weights[:, order]
        hits, alarms = ((drawn * truth[order] if side else drawn * ~truth[order]).cumsum(axis=1) for side in (1, 0))
        with np.errstate(invalid="ignore", divide="ignore"):
            hits, alarms = hits[:, ends] / hits[:, -1:], alarms[:, ends] / alarms[:, -1:]
        found = np.where(alarms <= 1 - specificity + 1e-9, hits, 0).max(axis=1)
        return {"height": np.where(np.isfinite(hits[:, -1] + alarms[:, -1]), found, np.nan)}

    value = float(statistic(np.ones((1, len(truth))))["height"][0])
    units = patients_of(patients, len(truth), np.c_[truth, ~truth])
    # A step function of few scores: BCa's corrections are for smooth ones.
    values = {"height": None if np.isnan(value) else value}
    return bootstrap(statistic, values, units, resamples, seed, "percentile")["height"]


def specificity_at_sensitivity(
    truth: Any, scores: Any, sensitivity: float, patients: Any = None, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """The reverse of `sensitivity_at_specificity`."""
    negated = -np.asarray(scores, np.float64)
    return sensitivity_at_specificity(~np.asarray(truth, bool), negated, sensitivity, patients, resamples, seed)
