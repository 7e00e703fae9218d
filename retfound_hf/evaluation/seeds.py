"""Statistics over the seeds of one experiment, as in the paper, and the correction for many comparisons."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..runs.errors import RetFoundError
from .estimate import CONFIDENCE, Comparison, Estimate, Z


def over_seeds(values: Sequence[float | None]) -> Estimate:
    """Mean +/- 1.96 SD / sqrt(n) over the seeds of one experiment (Zhou et al. 2023, captions of figures 2 to 4).

    The interval tells how training varies, not how the result would vary with other patients. With the paper's five
    seeds it is narrow: the normal quantile in place of Student's gives it a coverage of 88% rather than 95%.

    Args:
        values: one per seed; an undefined one (None or NaN) leaves the mean undefined.

    Returns:
        n is the number of seeds; one seed has no interval.
    """
    found = _finite(values)
    if found is None:
        return Estimate(None, None, None, len(values), "mean over seeds")
    mean = float(found.mean())
    if len(found) < 2:
        return Estimate(mean, None, None, len(found), "single seed")
    half = Z * float(found.std(ddof=1)) / len(found) ** 0.5
    return Estimate(mean, mean - half, mean + half, len(found), "mean ± 1.96 SD/√n over seeds")


def compare_seeds(first: Sequence[float | None], second: Sequence[float | None], paired: bool = False) -> Comparison:
    """Two-sided t-test of two models over their seeds, the paper's test (Zhou et al. 2023, figure captions).

    Args:
        first, second: one value per seed.
        paired: the seeds belong together one by one (same split, same order); otherwise Student's test of two
            independent samples, as in the paper.

    Returns:
        first - second, with the interval that belongs to the test. None where fewer than two seeds, or values that do
        not vary, leave the test undefined.

    Raises:
        RetFoundError: paired samples of different sizes.
    """
    from scipy import stats

    name = "paired t-test over seeds" if paired else "t-test over seeds"
    if paired and len(first) != len(second):
        raise RetFoundError(f"{len(first)} and {len(second)} values cannot be paired; give one of each per seed")
    seeds = min(len(first), len(second))
    one, other = _finite(first), _finite(second)
    if one is None or other is None:
        return Comparison(Estimate(None, None, None, seeds, name), None, name)
    difference = float(one.mean() - other.mean())
    spread = np.ptp(one - other) if paired else max(np.ptp(one), np.ptp(other))
    if seeds < 2 or spread < 1e-12:
        return Comparison(Estimate(difference, None, None, seeds, name), None, name)
    result: Any = stats.ttest_rel(one, other) if paired else stats.ttest_ind(one, other)
    interval = result.confidence_interval(CONFIDENCE)
    estimate = Estimate(difference, float(interval.low), float(interval.high), seeds, name)
    return Comparison(estimate, float(result.pvalue), name)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p values (1979) of a family of comparisons; undefined ones (None, NaN) are None, uncounted."""
    p_values = [None if value is None or np.isnan(value) else value for value in p_values]
    known = [index for index, value in enumerate(p_values) if value is not None]
    if len(known) < 2:  # nothing to correct, and statsmodels' clearing of memory takes a second beside torch
        return p_values
    from statsmodels.stats.multitest import multipletests

    adjusted: list[float | None] = [None] * len(p_values)
    for index, value in zip(known, multipletests([p_values[i] for i in known], method="holm")[1], strict=True):
        adjusted[index] = float(value)
    return adjusted


def _finite(values: Sequence[float | None]) -> np.ndarray | None:
    """float64 (n,), None where there are none or some are undefined."""
    found = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return found if len(found) and np.isfinite(found).all() else None
