"""The difference of two models that were trained several times: over patients and seeds at once."""

from collections.abc import Sequence

import numpy as np

from ..runs.errors import RetFoundError
from .bootstrap import MIN_DEFINED
from .estimate import CONFIDENCE, Comparison, Estimate

TEST = "t-test, variance over patients (bootstrap) + seeds"


def compare_over_both(
    first: Sequence[float], second: Sequence[float], drawn: np.ndarray, patients: int, paired: bool = False
) -> Comparison:
    """Test whether two models differ, each the mean of several trainings evaluated on the same patients.

    Both what other patients and what other seeds would have given varies the difference. The bootstrap over patients
    knows the first, of the very models that were trained; a t-test over seeds the second, on the very patients that
    were tested; either alone finds differences that are not there. Here the variances are added, and the degrees of
    freedom follow from both (Satterthwaite 1946): seeds - 1 where seeds make the difference, patients - 1 where
    patients do. A single training has no variance over seeds, and the test is then about these two trained models.

    Args:
        first, second: the metric, one value per training.
        drawn: (B,) differences of the two means on resampled patients, NaN where undefined.
        patients: how many were resampled.
        paired: the trainings belong together one by one (same training patients, same order).

    Returns:
        mean of first - mean of second. Without interval and p value where nothing varies, and where fewer than 100
        draws are defined (a metric that has none, no resampling): what seeds alone say is nothing about other
        patients. None where a training left the metric undefined.
    """
    one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if paired and len(one) != len(other):
        raise RetFoundError(f"{len(one)} and {len(other)} trainings cannot be paired; give one of each per seed")
    difference = float(one.mean() - other.mean())
    if not np.isfinite(difference):
        return Comparison(Estimate(None, None, None, patients, TEST), None, TEST)
    drawn = drawn[np.isfinite(drawn)]
    without = Comparison(Estimate(difference, None, None, patients, TEST), None, TEST)
    if len(drawn) < MIN_DEFINED:
        return without
    terms = [(float(drawn.var(ddof=1)), patients - 1)]
    terms += [_mean_variance(one - other)] if paired else [_mean_variance(one), _mean_variance(other)]
    variance = sum(term for term, _ in terms)
    if variance < 1e-24:
        return without
    from scipy.stats import t

    freedom = variance**2 / sum(term**2 / degrees for term, degrees in terms if term > 0)
    error = variance**0.5
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    estimate = Estimate(difference, difference - half, difference + half, patients, TEST)
    return Comparison(estimate, float(2 * t.sf(abs(difference) / error, freedom)), TEST)


def _mean_variance(values: np.ndarray) -> tuple[float, int]:
    """Variance of the mean, and its degrees of freedom; none for a single value."""
    if len(values) < 2:
        return 0.0, 1
    return float(values.var(ddof=1)) / len(values), len(values) - 1
