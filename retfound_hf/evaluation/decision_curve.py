"""Decision curve analysis (Vickers and Elkin 2006): is it better to act on the model than to treat all or none?"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runs.errors import RetFoundError

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
    truth, probabilities = np.asarray(truth, bool), np.asarray(probabilities, np.float64)
    thresholds = np.asarray(thresholds, np.float64)
    if truth.ndim != 1 or truth.shape != probabilities.shape or not len(truth):
        raise RetFoundError(f"truth {truth.shape} and probabilities {probabilities.shape} must both be (N,), N > 0")
    if thresholds.ndim != 1 or not ((thresholds > 0) & (thresholds < 1)).all():
        raise RetFoundError("thresholds of a decision curve lie above 0 and below 1")
    cost = thresholds / (1 - thresholds)
    hits, alarms = (_at_least(probabilities[side], thresholds) / len(truth) for side in (truth, ~truth))
    return DecisionCurve(thresholds, hits - alarms * cost, truth.mean() - (1 - truth.mean()) * cost)


def _at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    return len(values) - np.searchsorted(np.sort(values), thresholds, side="left")
