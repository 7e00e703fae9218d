"""How far confidence is from accuracy: reliability curve and expected calibration error."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runs.errors import RetFoundError

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
        correct: bool (N,), whether what was said with that confidence is true.
        bins: number of bins.
        equal_mass: bins of as many rows each, as far as ties allow, instead of bins of one width (Nguyen and O'Connor
            2015): they do not leave most rows in the last bin, where confidence is high throughout.

    Raises:
        RetFoundError: shapes that differ, no rows, confidence outside [0, 1], fewer than one bin.
    """
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if confidence.ndim != 1 or confidence.shape != correct.shape or not len(confidence):
        raise RetFoundError(f"confidence {confidence.shape} and correct {correct.shape} must both be (N,), N > 0")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise RetFoundError(f"confidence from {confidence.min():g} to {confidence.max():g}; accepted: [0, 1]")
    if bins < 1:
        raise RetFoundError(f"bins={bins}; at least 1 is needed")
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


def expected_calibration_error(confidence: Any, correct: Any, bins: int = BINS, equal_mass: bool = False) -> float:
    """Expected calibration error of Guo et al. 2017 (arXiv 1706.04599, equation 3); arguments as `reliability_curve`.

    0 is perfect, 1 the worst.
    """
    return reliability_curve(confidence, correct, bins, equal_mass).error


def confidence_and_correctness(truth: np.ndarray, probabilities: np.ndarray, single: bool) -> tuple[np.ndarray, ...]:
    """What calibration is measured on.

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
