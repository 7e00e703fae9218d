"""Intervals of a share: of independent trials, and of images that come several to a patient."""

from typing import Any, Literal

import numpy as np

from ..runs.errors import RetFoundError
from .estimate import CONFIDENCE, Estimate


def proportion_interval(successes: float, trials: float, method: Literal["wilson", "normal"] = "wilson") -> Estimate:
    """A share of independent trials with its 95% interval; of images see `share_interval`.

    Args:
        method: `wilson` (1927) holds for few trials and shares near 0 and 1; `normal` is the textbook's.

    Returns:
        Undefined without trials.
    """
    from statsmodels.stats.proportion import proportion_confint

    if not 0 <= successes <= trials:
        raise RetFoundError(f"{successes} of {trials} is no share; successes lie between 0 and the trials")
    if not trials:
        return Estimate(None, None, None, 0, method)
    low, high = proportion_confint(successes, trials, 1 - CONFIDENCE, method)
    return Estimate(successes / trials, float(low), float(high), int(trials), method)


def share_interval(hits: Any, patients: Any = None) -> Estimate:
    """A share of images with Wilson's 95% interval at the effective number of images.

    That is the number of independent images with the variance that the share has between patients (the ratio
    estimator's; Kish 1965), at most the number of images; at a share of 0 or 1, which shows no variance, the number of
    patients.

    Args:
        hits: bool (N,).
        patients: (N,) names or numbers, None or NaN where unknown; None: every image is a patient.

    Returns:
        n is the number of patients. Undefined without images.
    """
    import pandas as pd

    hits = np.asarray(hits, np.float64)
    row = np.arange(len(hits)) if patients is None else pd.factorize(np.asarray(patients, dtype=object))[0]
    row = np.where(row < 0, len(row) + np.arange(len(row)), row)
    row = np.unique(row, return_inverse=True)[1]
    name = "Wilson at the effective number of images"
    if not len(hits):
        return Estimate(None, None, None, 0, name)
    share, count = hits.mean(), int(row.max()) + 1
    effective = float(count)
    deviation = np.bincount(row, hits - share)
    if count > 1 and (spread := (deviation**2).sum() * count / (count - 1)) > 0:
        effective = min(len(hits), share * (1 - share) * len(hits) ** 2 / spread)
    found = proportion_interval(share * effective, effective)
    return Estimate(float(share), found.low, found.high, count, name)
