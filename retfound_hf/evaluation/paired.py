"""Two models on the same images: the difference of every metric, over the same draws of patients."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..runs.errors import RetFoundError
from .bootstrap import NO_INTERVAL, RESAMPLES, bootstrap
from .estimate import Comparison
from .inputs import ProblemType
from .metric_draws import metric_draws
from .metrics import compute_metrics
from .patients import Patients
from .weighted_metrics import Statistic, Values

TEST = "paired bootstrap over patients"


def compare_metrics(
    problem_type: ProblemType,
    labels: Any,
    first: Any,
    second: Any,
    class_names: Sequence[str],
    patients: Any = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Every metric of `first` minus that of `second`, with 95% interval and two-sided p value, over patients.

    Both models are measured on the same draws, so that what makes a draw easy for both cancels. Patients are drawn
    as in `bootstrap.metric_intervals`. For a single AUROC `delong.compare_aurocs` needs no resampling.

    Args:
        labels: true values of the rows.
        first, second: scores of the two models for the same rows, as `metrics.compute_metrics` takes them.
        patients, resamples, seed: as in `bootstrap.metric_intervals`.
    """
    if np.shape(first) != np.shape(second):
        raise RetFoundError(f"scores of shapes {np.shape(first)} and {np.shape(second)} are not of the same images")
    one, other = (metric_draws(problem_type, labels, scores, class_names) for scores in (first, second))
    measured = [compute_metrics(problem_type, labels, scores, class_names) for scores in (first, second)]
    values = {name: _minus(value, measured[1][name]) for name, value in measured[0].items()}
    found: dict[str, Comparison] = {}
    for names, units in one.passes(values, patients):
        difference = _difference(one.statistic(names), other.statistic(names))
        found |= compare(difference, {name: values[name] for name in names}, units, resamples, seed)
    if "ece" in found:
        bare = replace(found["ece"].difference, low=None, high=None, method=NO_INTERVAL)
        found["ece"] = Comparison(bare, None, TEST)
    return {name: found[name] for name in values}


def compare(
    difference: Statistic,
    values: Mapping[str, float | None],
    patients: Patients,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Intervals and p values of differences that can be computed from weighted rows; arguments as `bootstrap`.

    The p value is twice the smaller share of resamples on one side of 0, counting the whole set as one of them
    (Davison and Hinkley 1997, section 4.2), so that it is never 0.
    """
    drawn: list[Values] = []

    def kept(weights: np.ndarray) -> Values:
        drawn.append(difference(weights))
        return drawn[-1]

    estimates = bootstrap(kept, values, patients, resamples, seed, "percentile")
    found = {}
    for name, estimate in estimates.items():
        sample = np.concatenate([part[name] for part in drawn])
        found[name] = Comparison(estimate, _p_value(sample) if estimate.low is not None else None, TEST)
    return found


def _p_value(sample: np.ndarray) -> float:
    sample = sample[~np.isnan(sample)]
    tails = [(np.sum(side) + 1) / (len(sample) + 1) for side in (sample <= 0, sample >= 0)]
    return float(min(1.0, 2 * min(tails)))


def _difference(first: Statistic, second: Statistic) -> Statistic:
    def statistic(weights: np.ndarray) -> Values:
        ones, others = first(weights), second(weights)
        return {name: ones[name] - others[name] for name in ones}

    return statistic


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
