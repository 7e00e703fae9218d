"""Calibration: errors, slope and intercept of each class, and recalibration of the logits."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import BadArgumentError
from ..vocabulary import MULTI_LABEL, PROBLEM_TYPES
from .bootstrap import CONFIDENCE, Estimate, patients_of
from .thresholds import checked_outcomes, confidence_and_correctness, reliability_curve, with_ends

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


SLOPES = (0.05, 20.0)
MOST_NAMED = 6  # classes whose intercepts are told one by one


@dataclass(frozen=True)
class LogitScaling:
    """Change of a classifier's logits that calibrates them, `slope * logits + intercept`; a part of the head.

    Attributes:
        slope: (C,), one for all of exclusive classes; below 1 where the logits were too extreme.
        intercept: (C,), which corrects how frequent a class is said to be; those of exclusive classes sum to 0.
    """

    slope: tuple[float, ...]
    intercept: tuple[float, ...]

    @classmethod
    def of(cls, config: Mapping[str, Any], outputs: int) -> "LogitScaling | None":
        """Scaling that a model's configuration records, a temperature alone as well; None where nothing was fitted."""
        if config.get("calibration_slope") is not None:
            return cls(tuple(config["calibration_slope"]), tuple(config["calibration_intercept"]))
        temperature = config.get("calibration_temperature", 1.0)
        return None if temperature == 1 else cls((1 / temperature,) * outputs, (0.0,) * outputs)

    def apply(self, logits: np.ndarray) -> np.ndarray:
        """Logits (N, C) as the changed head gives them, in their type."""
        return (np.asarray(self.slope) * logits + np.asarray(self.intercept)).astype(logits.dtype)

    def after(self, earlier: "LogitScaling | None") -> "LogitScaling":
        """This change and an earlier one as a single one."""
        if earlier is None:
            return self
        slope, shift = np.multiply(self.slope, earlier.slope), self.apply(np.array(earlier.intercept))
        return LogitScaling(tuple(slope.tolist()), tuple(shift.tolist()))

    @property
    def is_uninformed(self) -> bool:
        """Whether a slope ended at the lowest one: validation gave no reason to trust the scores."""
        return min(self.slope) <= 1.001 * SLOPES[0]  # a search may stop a little short of its end

    def describe(self, class_names: Sequence[str]) -> str:
        """Such as `slope 0.82, intercepts -0.60 (glaucoma) and 0.60 (normal)`; a slope alone is a temperature."""
        if not any(self.intercept):
            return f"temperature {1 / self.slope[0]:.2f}"
        parts = []
        for name, values in (("slope", self.slope), ("intercept", self.intercept)):
            if len(set(values)) == 1:
                parts.append(f"{name} {values[0]:.2f}")
            elif len(values) > MOST_NAMED:
                parts.append(f"{name}s from {min(values):.2f} to {max(values):.2f} by class")
            else:
                each = [f"{value:.2f} ({label})" for value, label in zip(values, class_names, strict=True)]
                parts.append(f"{name}s {', '.join(each[:-1])} and {each[-1]}")
        return ", ".join(parts)


def fit_scaling(logits: Any, labels: Any, problem_type: str) -> LogitScaling:
    """Slope and intercepts of the logits by logistic regression of the labels on them (Cox 1958; Platt 1999).

    Exclusive classes get one slope and an intercept each, findings of a multi-label classifier a slope and an
    intercept each. Intercepts are fitted by maximum likelihood, so that the mean probability of a class is its share
    of these images, as it is not after a loss with class weights or balanced draws. Slopes are fitted with Firth's
    penalty (1993; with such intercepts Puhr et al. 2017), which is worth half an observation: with few images
    they are pulled from extremes, and are finite where the images are ranked without a fault.

    Args:
        logits: float (N, C), of images that the model was not trained on.
        labels: integer (N,), or (N, C) of 0 and 1 for multi-label.

    Returns:
        Slopes from 0.05 to 20; 0.05, with a warning, where the logits are no better than guessing. A class that none
        or all of the images have counts half an image more on either side; of a finding it moves the intercept alone.

    Raises:
        BadArgumentError: regression, which has no probabilities.
    """
    if not PROBLEM_TYPES[problem_type].is_classification:
        raise BadArgumentError(
            "`calibrate` is for probabilities, and regression has none; leave it out", field="calibrate", value=True
        )
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels).astype(np.int64)
    if problem_type == MULTI_LABEL:  # a finding is two classes, of which the logit of the first is 0
        fits = [_fit_scaling(np.c_[np.zeros(len(column)), column], label)
                for column, label in zip(logits.T, labels.T, strict=True)]  # fmt: skip
        found = LogitScaling(tuple(slope for slope, _ in fits), tuple(float(shift[1] - shift[0]) for _, shift in fits))
    else:
        slope, shift = _fit_scaling(logits, labels)
        found = LogitScaling((slope,) * logits.shape[1], tuple(shift.tolist()))
    if found.is_uninformed:
        warnings.warn(
            f"the slope ends at its lowest, {SLOPES[0]:g}: on the {len(labels)} validation images the scores are "
            "hardly better than guessing; every image gets nearly the share of the class, which tells nobody apart",
            stacklevel=2,
        )
    return found


def _fit_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Slope, and intercepts (C,) that sum to 0, of exclusive classes."""
    from scipy.optimize import minimize, minimize_scalar
    from scipy.special import log_softmax, softmax

    counts = np.bincount(labels, minlength=logits.shape[1]) + 0.0
    shares = counts if counts.all() else counts + 0.5
    shares /= shares.sum()

    def intercepts(slope: float) -> np.ndarray:
        """Those with which the mean probabilities are the shares; the last one is 0."""

        def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
            changed = slope * logits + np.r_[free, 0]
            chances = log_softmax(changed, axis=1)
            gradient = np.exp(chances).mean(axis=0) - shares
            return float((changed - chances)[:, 0].mean() - shares[:-1] @ free), gradient[:-1]

        def curvature(free: np.ndarray) -> np.ndarray:
            chances = softmax(slope * logits + np.r_[free, 0], axis=1)[:, :-1]
            return np.diag(chances.mean(axis=0)) - chances.T @ chances / len(logits)

        start = np.log(shares[:-1] / shares[-1]) - slope * (logits[:, :-1] - logits[:, -1:]).mean(axis=0)
        free = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-10}).x
        return np.r_[free, 0]

    def penalised(log_slope: float) -> float:
        """Negative log-likelihood less half the log of what the labels would tell of the slope."""
        slope = np.exp(log_slope)
        chances = log_softmax(slope * logits + intercepts(slope), axis=1)
        share = np.exp(chances)
        centred = logits - (share * logits).sum(axis=1, keepdims=True)
        both = (share * centred).sum(axis=0)[:-1]
        free = np.diag(share.sum(axis=0)[:-1]) - share[:, :-1].T @ share[:, :-1]
        told = (share * centred**2).sum() - both @ np.linalg.lstsq(free, both)[0]
        return -chances[np.arange(len(labels)), labels].sum() - np.log(max(told, TINY**2)) / 2

    slope = 1.0
    if (counts > 0).sum() > 1:
        ends = np.log(SLOPES)
        found = minimize_scalar(penalised, bounds=ends, method="bounded", options={"xatol": 1e-6})
        slope = SLOPES[0] if penalised(ends[0]) <= found.fun + 1e-9 else float(np.exp(found.x))
    shift = intercepts(slope)
    return slope, shift - shift.mean()


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
            row |= with_ends({"slope": line.slope, "intercept": line.intercept})
        found.append(row)
    return pd.DataFrame(found)
