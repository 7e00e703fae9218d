"""Intervals of a share of independent trials."""

from typing import Literal

from ..runs.errors import RetFoundError
from .estimate import CONFIDENCE, Estimate


def proportion_interval(successes: int, trials: int, method: Literal["wilson", "normal"] = "wilson") -> Estimate:
    """A share of independent trials with its 95% interval.

    Both eyes of a patient are not independent: use `bootstrap` for shares of images.

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
    return Estimate(successes / trials, float(low), float(high), trials, method)
