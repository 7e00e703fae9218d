"""Thresholds on a class's probability: chosen on validation, measured on test, with intervals of shares."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from ..errors import BadDataError, require_range
from .bootstrap import CONFIDENCE, Estimate, patient_numbers
from .metrics import defined_classes

if TYPE_CHECKING:
    from .predictions import Predictions

WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
HEALTH = frozenset(("normal", "healthy", "health", "control", "controls", "negative", "absent", "unaffected"))
BESIDES = frozenset(("eye", "eyes", "retina", "fundus", "macula", "patient", "patients", "class"))
DENIALS = ("no", "not", "without")


def positive_class(class_names: Sequence[str]) -> int:
    """Index of the class that curves and thresholds speak of: 1, or 0 where 1 and not 0 is named for health.

    Folders of classes sort by name, so that `glaucoma` comes before `normal`.

    Args:
        class_names: of two exclusive classes.
    """
    first, second = map(_is_absence, class_names)
    return 0 if second and not first else 1


def _is_absence(name: str) -> bool:
    """`Normal`, `healthy eyes`, `no_dr`, `NonReferable`; not `normal tension glaucoma`."""
    words = [word.casefold() for word in WORD.findall(name)]
    if len(words) > 1 and len(words[0]) == 1:  # a_normal, b_glaucoma: a letter for the order
        words = words[1:]
    if not words:
        return False
    return words[0] in DENIALS or words[0].startswith("non") or (words[0] in HEALTH and set(words[1:]) <= BESIDES)


def share_interval(hits: Any, patients: Any = None) -> Estimate:
    """A share of images with Wilson's 95% interval (1927) at the effective number of images.

    That is the number of independent images with the variance that the share has between patients (the ratio
    estimator's; Kish 1965), at most the number of images; at a share of 0 or 1, which shows no variance, the number of
    patients.

    Args:
        hits: bool (N,).
        patients: (N,) names or numbers, None or NaN where unknown; None: every image is a patient.

    Returns:
        n is the number of patients. Undefined without images.
    """
    from statsmodels.stats.proportion import proportion_confint

    hits = np.asarray(hits, np.float64)
    row = patient_numbers(patients, len(hits))
    name = "Wilson at the effective number of images"
    if not len(hits):
        return Estimate(None, None, None, 0, name)
    share, count = hits.mean(), int(row.max()) + 1
    effective = float(count)
    deviation = np.bincount(row, hits - share)
    if count > 1 and (spread := (deviation**2).sum() * count / (count - 1)) > 0:
        effective = min(len(hits), share * (1 - share) * len(hits) ** 2 / spread)
    low, high = proportion_confint(share * effective, effective, 1 - CONFIDENCE, "wilson")
    return Estimate(float(share), float(low), float(high), count, name)


Criterion = Literal["sensitivity", "specificity", "youden"]


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
        BadDataError: one outcome only.
        BadArgumentError: a target that is not above 0 and at most 1.
    """
    truth, scores = np.asarray(truth, bool), np.asarray(scores, np.float64)
    if truth.all() or not truth.any():
        raise BadDataError("a threshold needs images with and images without the class; these are all of one kind")
    if criterion != "youden":
        require_range("target", np.nan if target is None else target, 0, 1, open_low=True)
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


def choose_points(
    predictions: "Predictions", wanted: Sequence[tuple[Criterion, float | None]]
) -> list[OperatingPoint]:
    """A threshold for every class that some rows have and others do not, and every (criterion, target)."""
    truth, scores = predictions.truth, predictions.scores
    return [
        OperatingPoint(name, criterion, target, choose_threshold(truth[:, index], scores[:, index], criterion, target))
        for index, name in enumerate(predictions.class_names)
        if defined_classes(truth)[index]
        for criterion, target in wanted
    ]


def points_table(predictions: "Predictions", points: Sequence[OperatingPoint]) -> pd.DataFrame:
    """Sensitivity, specificity and predictive values of thresholds chosen elsewhere: one row per class and criterion.

    Returns:
        `class`, `criterion`, `target`, `threshold`, then `sensitivity`, `specificity`, `ppv` and `npv`, each with its
        `_low` and `_high`, and `positives`, `negatives`.
    """
    rows = []
    for point in points:
        column = predictions.class_names.index(point.label)
        truth, scores = predictions.truth[:, column], predictions.scores[:, column]
        row: dict[str, Any] = {"class": point.label, "criterion": point.criterion, "target": point.target,
                               "threshold": point.threshold}  # fmt: skip
        for name, found in measure_threshold(truth, scores, point.threshold, predictions.patients).items():
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        positives = int(truth.sum())
        rows.append({**row, "positives": positives, "negatives": len(truth) - positives})
    return pd.DataFrame(rows)
