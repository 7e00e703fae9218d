"""Calibration: errors, slope and intercept of each class, and temperature scaling."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import BadArgumentError
from ..vocabulary import MULTI_LABEL, PROBLEM_TYPES
from .bootstrap import CONFIDENCE, Estimate, patients_of
from .thresholds import checked_outcomes, confidence_and_correctness, reliability_curve

if TYPE_CHECKING:
    from .predictions import Predictions


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
    truth, probabilities = checked_outcomes(truth, probabilities)
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
        row["ece"] = reliability_curve(confidence, correct).error
        row["ece_equal_mass"] = reliability_curve(confidence, correct, equal_mass=True).error
        if name != "all":
            line = calibration_line(correct, confidence, predictions.patients)
            for part, one in (("slope", line.slope), ("intercept", line.intercept)):
                row |= {part: one.value, f"{part}_low": one.low, f"{part}_high": one.high}
        found.append(row)
    return pd.DataFrame(found)
