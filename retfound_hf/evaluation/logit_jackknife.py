"""95% intervals of numbers that are pressed against 1, such as an AUPRC: the jackknife on the logit scale."""

import numpy as np

from .estimate import Z

METHOD = "jackknife over patients, logit scale"
# An average precision of few positives is skewed beyond what BCa mends.
SKEWED = ("auprc",)


def is_skewed(name: str) -> bool:
    """Whether a metric gets its interval here, and not from the bootstrap."""
    return name.split("/", 1)[0] in SKEWED


def logit_interval(value: float, left_out: np.ndarray) -> tuple[float, float] | None:
    """A normal interval of log(value / (1 - value)), carried back (Boyd, Eng and Page 2013, with another variance).

    The variance is the jackknife's over patients, in the place of the binomial one, which takes images for patients.

    Args:
        value: in [0, 1].
        left_out: (groups,) the value without each group of patients.

    Returns:
        low, high; None where a number is 0, 1 or undefined, which has no logit, or where nothing varies.
    """
    numbers = np.r_[value, left_out]
    if not ((numbers > 0) & (numbers < 1)).all() or np.ptp(left_out) < 1e-12:
        return None
    logits = np.log(numbers / (1 - numbers))
    groups = len(left_out)
    error = ((groups - 1) / groups * ((logits[1:] - logits[1:].mean()) ** 2).sum()) ** 0.5
    low, high = 1 / (1 + np.exp(-(logits[0] + Z * error * np.array([-1, 1]))))
    return float(low), float(high)
