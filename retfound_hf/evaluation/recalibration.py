"""Calibration slope and intercept (Cox 1958; Van Calster et al. 2016): the outcome modelled on the logit."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runs.errors import RetFoundError
from .estimate import CONFIDENCE, Estimate
from .patients import patients_of

# The logit of a probability of exactly 0 or 1, which float32 gives for sure ones, is taken at this distance.
TINY = 1e-7


@dataclass(frozen=True)
class Recalibration:
    """How predicted logits must be changed to fit the outcomes.

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
    truth, probabilities = np.asarray(truth, bool), np.asarray(probabilities, np.float64)
    if truth.ndim != 1 or truth.shape != probabilities.shape or not len(truth):
        raise RetFoundError(f"truth {truth.shape} and probabilities {probabilities.shape} must both be (N,), N > 0")
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
