"""Calibration: reliability curve, ECE, slope and intercept, temperature scaling, decision curve."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import BadArgumentError, BadDataError, require_range
from ..vocabulary import MULTI_LABEL, PROBLEM_TYPES
from .bootstrap import CONFIDENCE, Estimate, patients_of

if TYPE_CHECKING:
    from .predictions import Predictions

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
        """Expected calibration error: mean of |accuracy - confidence| over the bins, weighted by their counts."""
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
    correct, confidence = _outcomes(correct, confidence)
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


def _outcomes(truth: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
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


def expected_calibration_error(confidence: Any, correct: Any, bins: int = BINS, equal_mass: bool = False) -> float:
    """Expected calibration error of Guo et al. 2017 (arXiv 1706.04599, equation 3); arguments as `reliability_curve`.

    0 is perfect, 1 the worst.
    """
    return reliability_curve(confidence, correct, bins, equal_mass).error


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


# The logit of a probability of exactly 0 or 1, which float32 gives for sure ones, is taken at this distance.
TINY = 1e-7


@dataclass(frozen=True)
class Recalibration:
    """Change of the predicted logits that fits the outcomes.

    Attributes:
        slope: of the outcome's log odds on the predicted ones; below 1 where predictions are too extreme.
        intercept: calibration in the large, with the slope held at 1; below 0 where predictions are too high.
    """

    slope: Estimate
    intercept: Estimate


def calibration_line(truth: Any, probabilities: Any, patients: Any = None) -> Recalibration:
    """Slope and intercept with 95% intervals, whose errors are robust to several images of a patient (sandwich).

    Args:
        truth: bool (N,).
        probabilities: float (N,) in [0, 1].
        patients: (N,) names, None or NaN where unknown.

    Returns:
        Undefined where one outcome is absent; the slope also where the outcomes are separated without a fault.
    """
    truth, probabilities = _outcomes(truth, probabilities)
    clipped = np.clip(probabilities, TINY, 1 - TINY)
    logits = np.log(clipped / (1 - clipped))
    units = patients_of(patients, len(truth))
    one = np.ones((len(truth), 1))
    separated = (
        truth.any()
        and not truth.all()
        and (logits[truth].min() >= logits[~truth].max() or logits[truth].max() <= logits[~truth].min())
    )
    constant = np.ptp(logits) < 1e-12
    slope = None if separated or constant else _fit(truth, np.c_[one, logits], None, units.row)
    return Recalibration(
        _estimate(slope, 1, units.count),
        _estimate(_fit(truth, one, logits, units.row), 0, units.count),
    )


def _fit(truth: np.ndarray, design: np.ndarray, offset: np.ndarray | None, groups: np.ndarray) -> Any:
    """A binomial regression, None where it has no finite solution."""
    from statsmodels.genmod.families import Binomial
    from statsmodels.genmod.generalized_linear_model import GLM

    if truth.all() or not truth.any():
        return None
    share = truth.mean()
    # From one probability for all, or the predictions as they are: other starts run away from logits of 16.
    start = [0.0] if offset is not None else [float(np.log(share / (1 - share))), 0.0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = GLM(truth.astype(float), design, family=Binomial(), offset=offset).fit(
            start_params=start,
            cov_type="cluster",
            cov_kwds={"groups": groups},
        )
    return fit if fit.converged and np.isfinite(fit.bse).all() else None


def _estimate(fit: Any, index: int, patients: int) -> Estimate:
    name = "logistic regression, errors clustered by patient"
    if fit is None:
        return Estimate(None, None, None, patients, name)
    low, high = fit.conf_int(1 - CONFIDENCE)[index]
    return Estimate(float(fit.params[index]), float(low), float(high), patients, name)


RANGE = (0.05, 20.0)


def fit_temperature(logits: Any, labels: Any, problem_type: str) -> float:
    """The T that minimises the log loss of `softmax(logits / T)`, or for multi-label of `sigmoid(logits / T)`.

    The loss is convex in 1/T, so that there is one minimum. The ranking within a row does not change.

    Args:
        logits: float (N, C), of images that the model was not trained on.
        labels: integer (N,), or (N, C) of 0 and 1 for multi-label, which gets one T for all labels.

    Returns:
        Between 0.05 and 20; above 1 where the model was too sure. 1, with a warning, where the set is
        ranked without a fault, so that the smallest T is best; 20, with a warning, where the logits are no better
        than guessing, so that the largest T is best: nearly equal probabilities are then the honest ones.

    Raises:
        BadArgumentError: regression, which has no probabilities.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit, log_softmax

    if not PROBLEM_TYPES[problem_type].is_classification:
        raise BadArgumentError(
            "a temperature calibrates probabilities, and regression has none; leave `calibrate` out",
            field="calibrate", value=True,
        )  # fmt: skip
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)

    def loss(log_inverse: float) -> float:
        scaled = logits * np.exp(log_inverse)
        if problem_type == MULTI_LABEL:
            return -float(np.where(labels > 0.5, log_expit(scaled), log_expit(-scaled)).mean())
        return -float(log_softmax(scaled, axis=1)[np.arange(len(labels)), labels].mean())

    ends = -np.log(RANGE[1]), -np.log(RANGE[0])
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-6})
    if loss(ends[0]) <= found.fun + 1e-9:
        warnings.warn(
            f"the temperature ends at its highest, {RANGE[1]:g}: on the {len(labels)} validation images the scores "
            "are hardly better than guessing, or far too sure; the probabilities become nearly equal, and are not "
            "calibrated",
            stacklevel=2,
        )
        return RANGE[1]
    if loss(ends[1]) <= found.fun + 1e-9:
        warnings.warn(
            f"the {len(labels)} validation images are ranked without a fault, and tell nothing about calibration; the "
            "temperature stays 1",
            stacklevel=2,
        )
        return 1.0
    return float(np.exp(-found.x))


def is_uninformed(temperature: float) -> bool:
    """True where the fit ended at the highest temperature: validation gave no reason to trust the scores."""
    return temperature >= 0.999 * RANGE[1]  # the search stops a little short of its end


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
    truth, probabilities = _outcomes(truth, probabilities)
    thresholds = np.asarray(thresholds, np.float64)
    if thresholds.ndim != 1 or not ((thresholds > 0) & (thresholds < 1)).all():
        raise BadArgumentError(
            "thresholds of a decision curve lie above 0 and below 1", field="thresholds", value=thresholds
        )
    cost = thresholds / (1 - thresholds)
    hits, alarms = (_at_least(probabilities[side], thresholds) / len(truth) for side in (truth, ~truth))
    return DecisionCurve(thresholds, hits - alarms * cost, truth.mean() - (1 - truth.mean()) * cost)


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")


def calibration_table(predictions: "Predictions") -> pd.DataFrame:
    """A row per class, and one (`all`) for the predicted class, or for all labels pooled.

    Returns:
        `class`, `positives`, `n`, `ece` in bins of equal width and `ece_equal_mass` in bins of as many rows; `slope`
        and `intercept` of `calibration_line` with `_low` and `_high`, by class.
    """
    rows, found = predictions.rows, []
    sides = {name: (rows.scores[:, column], rows.truth[:, column])
             for column, name in enumerate(predictions.class_names)}  # fmt: skip
    sides["all"] = confidence_and_correctness(rows.truth, rows.scores, rows.single)
    for name, (confidence, correct) in sides.items():
        row: dict[str, Any] = {"class": name, "positives": int(correct.sum()), "n": len(correct)}
        row["ece"] = expected_calibration_error(confidence, correct)
        row["ece_equal_mass"] = expected_calibration_error(confidence, correct, equal_mass=True)
        if name != "all":
            line = calibration_line(correct, confidence, predictions.patients)
            for part, one in (("slope", line.slope), ("intercept", line.intercept)):
                row |= {part: one.value, f"{part}_low": one.low, f"{part}_high": one.high}
        found.append(row)
    return pd.DataFrame(found)
