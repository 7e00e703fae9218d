"""Temperature scaling (Guo et al. 2017, section 4.2): one number that makes a model as sure as it is right."""

import warnings
from typing import Any

import numpy as np

from ..runs.errors import RetFoundError
from .inputs import ProblemType

RANGE = (0.05, 20.0)


def fit_temperature(logits: Any, labels: Any, problem_type: ProblemType) -> float:
    """The T that minimises the log loss of `softmax(logits / T)`, or for multi-label of `sigmoid(logits / T)`.

    The loss is convex in 1/T, so that there is one minimum. The ranking within a row does not change.

    Args:
        logits: float (N, C), of images that the model was not trained on.
        labels: integer (N,), or (N, C) of 0 and 1 for multi-label, which gets one T for all labels.

    Returns:
        Between 0.05 and 20; above 1 where the model was too sure. A set that is ranked without a fault has no best T,
        the smaller the better: 1, with a warning. One on which the logits are no better than guessing has none
        either, the larger the better: 20, with a warning; probabilities that hardly differ are then the honest ones.

    Raises:
        RetFoundError: regression, which has no probabilities.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit, log_softmax

    if problem_type == "regression":
        raise RetFoundError("a temperature calibrates probabilities, and regression has none; leave calibration out")
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)

    def loss(log_inverse: float) -> float:
        scaled = logits * np.exp(log_inverse)
        if problem_type == "multi_label_classification":
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
    """Whether the fit ended at the highest temperature, so that validation gave no reason to trust the scores."""
    return temperature >= 0.999 * RANGE[1]  # the search stops a little short of its end
