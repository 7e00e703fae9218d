"""Thresholds on probabilities, chosen on validation and measured on test, and the curves over all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy.special import expit

from ..errors import BadArgumentError, BadDataError, require_range
from ..vocabulary import SINGLE_LABEL, known_order
from .bootstrap import Estimate, patient_numbers, rarer_side
from .intervals import share_interval, student

if TYPE_CHECKING:
    from .predictions import Predictions


def positive_class(class_names: Sequence[str], class_order: Sequence[str] | None = None) -> int:
    """Index of the class that curves and thresholds speak of: the finding where order or names tell it, else 1.

    Folders of classes sort by name, so that `glaucoma` comes before `normal`.

    Args:
        class_names: of two exclusive classes.
        class_order: the finding last, where it is known; by default as the names tell (`vocabulary.known_order`).
    """
    order = class_order or known_order(class_names)
    return list(class_names).index(order[-1]) if order else 1


def finding_of(problem_type: str, class_names: Sequence[str], class_order: Sequence[str] | None = None) -> str | None:
    """Of two exclusive classes the one that figures and reports speak of; None for all other tasks."""
    if problem_type != SINGLE_LABEL or len(class_names) != 2:
        return None
    return class_names[positive_class(class_names, class_order)]


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


def outcome_counts(truth: np.ndarray, called: np.ndarray) -> dict[str, int]:
    """The 2 x 2 table of bool (N,) truth and calls: `tp`, `fp`, `fn`, `tn`."""
    sides = {"tp": called & truth, "fp": called & ~truth, "fn": ~called & truth, "tn": ~called & ~truth}
    return {name: int(rows.sum()) for name, rows in sides.items()}


def choose_points(
    predictions: "Predictions", wanted: Sequence[tuple[Criterion, float | None]]
) -> list[OperatingPoint]:
    """A threshold for every class that some rows have and others do not, and every (criterion, target)."""
    truth, scores = predictions.truth, predictions.scores
    return [
        OperatingPoint(name, criterion, target, choose_threshold(truth[:, index], scores[:, index], criterion, target))
        for index, name in enumerate(predictions.class_names)
        if index in predictions.rows.two_sided
        for criterion, target in wanted
    ]


def predictive_values(sensitivity: Estimate, specificity: Estimate, prevalence: float) -> dict[str, Estimate]:
    """`ppv` and `npv` where another share of patients has the finding, with 95% intervals.

    By Bayes' rule from sensitivity and specificity, which are taken to be the same there. Their intervals are carried
    over on the log scale of the likelihood ratio (MOVER; Zou and Donner 2008); where one of the two shares is 0, by
    the ends of both, which is wider.

    Args:
        sensitivity, specificity: of a threshold, as of `measure_threshold`.
        prevalence: above 0 and below 1.
    """
    odds, found = prevalence / (1 - prevalence), {}
    for name, right, wrong, prior in (
        ("ppv", sensitivity, specificity, odds),
        ("npv", specificity, sensitivity, 1 / odds),
    ):
        count, method = min(right.n, wrong.n), f"Bayes' rule at a prevalence of {prevalence:g}, MOVER"
        if right.value is None or wrong.value is None or right.value == 1 - wrong.value == 0:
            found[name] = Estimate(None, None, None, count, method)
            continue
        with np.errstate(divide="ignore"):
            hit, alarm = (
                np.log([right.value, right.low, right.high]),
                np.log1p([-wrong.value, -wrong.high, -wrong.low]),
            )
        value = hit[0] - alarm[0] + np.log(prior)
        low, high = hit[1] - alarm[2] + np.log(prior), hit[2] - alarm[1] + np.log(prior)
        if np.isfinite(value):
            low = value - np.hypot(hit[0] - hit[1], alarm[2] - alarm[0])
            high = value + np.hypot(hit[2] - hit[0], alarm[0] - alarm[1])
        value, low, high = map(float, expit([value, low, high]))
        found[name] = Estimate(value, low, high, count, method)
    return found


def class_counts(predictions: "Predictions") -> pd.DataFrame:
    """Counts that the figures of each class rest on.

    Returns:
        `class`, `rows` and `patients` of the set, `positives` (rows of the class) and `patients_positive` (patients
        with such a row); patients are missing where they are unknown.
    """
    truth, patients = predictions.truth, predictions.patients
    numbers = patient_numbers(patients, len(predictions))
    table = pd.DataFrame({"class": predictions.class_names, "rows": len(predictions), "positives": truth.sum(axis=0)})
    table["patients"] = None if patients is None else int(numbers.max()) + 1
    table["patients_positive"] = [None if patients is None else len(np.unique(numbers[side])) for side in truth.T]
    return table


def points_table(
    predictions: "Predictions", points: Sequence[OperatingPoint], prevalence: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Performance of thresholds that were chosen elsewhere: one row per class and criterion.

    Args:
        predictions: with labels.
        points: thresholds.
        prevalence: by class, the share of patients who have it where the model is to be used.

    Returns:
        `class`, `criterion`, `target`, `threshold`, then `sensitivity`, `specificity`, `ppv` and `npv` (at the share
        of this set), each with its `_low` and `_high`, `positives`, `negatives`, and the counts of the 2 x 2 table:
        `tp`, `fp`, `fn`, `tn`. For classes with a prevalence also `prevalence`, `ppv_there` and `npv_there` with
        their ends.
    """
    rows = []
    for point in points:
        column = predictions.class_names.index(point.label)
        truth, scores = predictions.truth[:, column], predictions.scores[:, column]
        row: dict[str, Any] = {"class": point.label, "criterion": point.criterion, "target": point.target,
                               "threshold": point.threshold}  # fmt: skip
        measured = measure_threshold(truth, scores, point.threshold, predictions.patients)
        row |= with_ends(measured)
        positives = int(truth.sum())
        row |= {"positives": positives, "negatives": len(truth) - positives}
        row |= outcome_counts(truth, scores >= point.threshold)
        if share := (prevalence or {}).get(point.label):
            there = predictive_values(measured["sensitivity"], measured["specificity"], share)
            row |= {"prevalence": share, **with_ends({f"{name}_there": found for name, found in there.items()})}
        rows.append(row)
    return pd.DataFrame(rows)


def with_ends(found: Mapping[str, Estimate]) -> dict[str, float | None]:
    """Cells of estimates: the value, `_low` and `_high` of each."""
    cells: dict[str, float | None] = {}
    for name, one in found.items():
        cells |= {name: one.value, f"{name}_low": one.low, f"{name}_high": one.high}
    return cells


BINS = 15  # Guo et al. 2017, section 5


@dataclass(frozen=True)
class ReliabilityCurve:
    """Accuracy in bins of confidence: bin m holds `edges[m] < confidence <= edges[m + 1]`, the first one 0 as well.

    Attributes:
        edges: float64 (M + 1,), from 0 to 1.
        confidence: float64 (M,), mean confidence in the bin, NaN where it is empty.
        accuracy: float64 (M,), fraction that is correct, NaN where the bin is empty.
        count: int64 (M,).
    """

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def error(self) -> float:
        """Expected calibration error of Guo et al. 2017 (arXiv 1706.04599, equation 3): 0 is perfect, 1 the worst."""
        filled = self.count > 0
        gaps = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float(np.average(gaps, weights=self.count[filled]))


def reliability_curve(confidence: Any, correct: Any, bins: int = BINS, equal_mass: bool = False) -> ReliabilityCurve:
    """Accuracy in bins of confidence.

    Args:
        confidence: float (N,) in [0, 1].
        correct: bool (N,), whether the prediction of that confidence is right.
        bins: number of bins.
        equal_mass: bins of as many rows each, as far as ties allow, instead of bins of one width (Nguyen and O'Connor
            2015): they do not leave most rows in the last bin, where confidence is high throughout.

    Raises:
        BadDataError: shapes that differ, no rows, confidence outside [0, 1].
        BadArgumentError: fewer than one bin.
    """
    correct, confidence = checked_outcomes(correct, confidence)
    require_range("bins", bins, 1)
    edges = np.linspace(0, 1, bins + 1)
    if equal_mass:
        edges = np.unique(np.r_[0, np.quantile(confidence, edges[1:-1], method="inverted_cdf"), 1])
        bins = len(edges) - 1
    index = bin_of(confidence, edges)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN that marks an empty bin
        means = [np.bincount(index, weights=values, minlength=bins) / count for values in (confidence, correct)]
    return ReliabilityCurve(edges, means[0], means[1], count)


def bin_of(confidence: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Index (N,) of the bin m with `edges[m] < confidence <= edges[m + 1]`; the lowest edge is in the first bin."""
    return np.maximum(np.searchsorted(edges, confidence, side="left") - 1, 0)


def checked_outcomes(truth: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    """bool (N,) and float64 (N,) in [0, 1], or BadDataError."""
    truth, probabilities = np.asarray(truth, bool), np.asarray(probabilities, np.float64)
    if truth.ndim != 1 or truth.shape != probabilities.shape or not len(truth):
        raise BadDataError(f"outcomes {truth.shape} and probabilities {probabilities.shape} must both be (N,), N > 0")
    outside = ~((probabilities >= 0) & (probabilities <= 1))
    if outside.any():
        raise BadDataError(
            f"probability {probabilities[outside][0]:g} is outside 0 to 1", rows=np.flatnonzero(outside)
        )
    return truth, probabilities


def confidence_and_correctness(truth: np.ndarray, probabilities: np.ndarray, single: bool) -> tuple[np.ndarray, ...]:
    """Confidence of each prediction, and whether it is right: what calibration is measured on.

    Args:
        truth: bool (N, C).
        probabilities: float (N, C).
        single: one class per row: the probability of the class with the highest one, and whether it is right.
            Otherwise all labels are pooled: every probability, and whether its label holds.

    Returns:
        confidence, float; correct, bool; both (N,) or (N * C,).
    """
    if not single:
        return probabilities.ravel(), truth.ravel()
    predicted = probabilities.argmax(axis=1)[:, None]
    return (
        np.take_along_axis(probabilities, predicted, axis=1)[:, 0],
        np.take_along_axis(truth, predicted, axis=1)[:, 0],
    )


THRESHOLDS = np.arange(1, 100) / 100


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit, in true positives per case, at each threshold probability; that of treating none is 0.

    Attributes:
        thresholds, model, treat_all: float64 (K,).
    """

    thresholds: np.ndarray
    model: np.ndarray
    treat_all: np.ndarray


def decision_curve(truth: Any, probabilities: Any, thresholds: Any = THRESHOLDS) -> DecisionCurve:
    """Net benefit of treating those with a probability of at least the threshold.

    The threshold t is also the exchange rate: one false positive costs t / (1 - t) of a true positive.

    Args:
        truth: bool (N,).
        probabilities: float (N,), calibrated, in [0, 1].
        thresholds: above 0 and below 1.
    """
    truth, probabilities = checked_outcomes(truth, probabilities)
    thresholds = np.asarray(thresholds, np.float64)
    if thresholds.ndim != 1 or not ((thresholds > 0) & (thresholds < 1)).all():
        raise BadArgumentError(
            "thresholds of a decision curve lie above 0 and below 1", field="thresholds", value=thresholds
        )
    cost = thresholds / (1 - thresholds)
    hits, alarms = (_at_least(probabilities[side], thresholds) / len(truth) for side in (truth, ~truth))
    return DecisionCurve(thresholds, hits - alarms * cost, truth.mean() - (1 - truth.mean()) * cost)


BENEFIT_THRESHOLDS = np.arange(1, 20) / 20


def net_benefit_table(predictions: "Predictions", thresholds: Any = BENEFIT_THRESHOLDS) -> pd.DataFrame:
    """Net benefit of acting on each class's probability, and what is gained over the better of treating all and none.

    Both are means over rows. Their 95% intervals are from the variance between patients (the ratio estimator's), with
    Student's t of the patients of the rarer outcome less one; none where that is a single patient.

    Args:
        predictions: with labels and calibrated probabilities.
        thresholds: as of `decision_curve`.

    Returns:
        For each class with both outcomes and each threshold `class`, `threshold`, `net_benefit` with `_low` and
        `_high`, `treat_all`, and `gain` with `_low` and `_high`. Where all rows bring the same there are no ends.
    """
    patients, found = patient_numbers(predictions.patients, len(predictions)), []
    for index in predictions.rows.two_sided:
        truth, scores = predictions.truth[:, index], predictions.scores[:, index]
        curve = decision_curve(truth, scores, thresholds)
        rarer = rarer_side(truth[:, None], patients)
        reach = student(rarer) if rarer > 1 else np.nan
        for place, threshold in enumerate(curve.thresholds):
            treated = truth - ~truth * threshold / (1 - threshold)  # what treating each row brings
            default = treated if curve.treat_all[place] > 0 else np.zeros(len(truth))
            acted = treated * (scores >= threshold)
            row = {"class": predictions.class_names[index], "threshold": threshold,
                   "treat_all": curve.treat_all[place]}  # fmt: skip
            for name, values in (("net_benefit", acted), ("gain", acted - default)):
                sums = np.bincount(patients, values - values.mean())
                error = reach * np.sqrt((sums**2).sum() * len(sums) / max(len(sums) - 1, 1)) / len(truth)
                ends = values.mean() + (error or np.nan) * np.array([-1, 1])  # none where nobody differs
                row |= {name: values.mean(), f"{name}_low": ends[0], f"{name}_high": ends[1]}
            found.append(row)
    return pd.DataFrame(found)


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")
