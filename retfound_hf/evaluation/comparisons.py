"""Comparisons of models: paired bootstrap, DeLong, over seeds, over seeds and patients, Holm's correction."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadDataError
from .bootstrap import CONFIDENCE, MIN_DEFINED, RESAMPLES, Comparison, Estimate, Z, draw, patients_of
from .metrics import weighted_metrics

if TYPE_CHECKING:
    from .predictions import Predictions


def auroc_interval(truth: Any, scores: Any, patients: Any = None) -> Estimate:
    """AUROC of one classifier with DeLong's 95% interval, on the logit scale, which keeps it between 0 and 1.

    Args:
        truth: bool (N,).
        scores: float (N,), higher for more likely.
        patients: (N,) names whose rows are correlated (both eyes, repeat images); None or NaN: independent.

    Returns:
        Undefined where one outcome is absent; without interval at an AUROC of 0 or 1, where the variance is 0.
    """
    areas, covariance, count = _areas(truth, [scores], patients)
    name = _name("DeLong", patients)
    if areas is None:
        return Estimate(None, None, None, count, name)
    area, variance = float(areas[0]), float(covariance[0, 0])
    if not 0 < area < 1 or variance <= 0:
        return Estimate(area, None, None, count, name)
    logit, half = np.log(area / (1 - area)), Z * variance**0.5 / (area * (1 - area))
    low, high = 1 / (1 + np.exp(-(logit + np.array([-half, half]))))
    return Estimate(area, float(low), float(high), count, name)


def compare_aurocs(truth: Any, first: Any, second: Any, patients: Any = None) -> Comparison:
    """DeLong's test of two classifiers' AUROCs on the same rows; arguments as `auroc_interval`.

    Returns:
        first - second. Without interval and p value where the difference has no variance, as between equal rankings.
    """
    from scipy.stats import norm

    areas, covariance, count = _areas(truth, [first, second], patients)
    name = _name("DeLong", patients)
    if areas is None:
        return _untested(None, count, name)
    difference = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance < 1e-15:
        return _untested(difference, count, name)
    error = variance**0.5
    estimate = Estimate(difference, difference - Z * error, difference + Z * error, count, name)
    return Comparison(estimate, float(2 * norm.sf(abs(difference) / error)), name)


def _areas(truth: Any, scores: list[Any], patients: Any) -> tuple[np.ndarray | None, np.ndarray, int]:
    """AUROCs (K,), their covariance (K, K) and the number of patients; None for AUROCs that are undefined."""
    truth = np.asarray(truth, dtype=bool)
    table = np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or table.shape[1:] != truth.shape or not len(truth):
        raise BadDataError(f"truth {truth.shape} and scores {table.shape[1:]} must both be (N,), N > 0")
    if not np.isfinite(table).all():
        raise BadDataError("scores hold values that are NaN or infinite; only finite numbers are accepted")
    units = patients_of(patients, len(truth))
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        return None, np.empty((0, 0)), units.count
    placements = np.array([_placements(truth, row) for row in table])
    areas = placements[:, truth].mean(axis=1)
    deviations = placements - areas[:, None]
    # Sums over each patient's rows; alone, each row is a patient, and DeLong's variance is what comes out.
    with_positive = len(np.unique(units.row[truth]))
    with_negative = len(np.unique(units.row[~truth]))
    if min(with_positive, with_negative) < 2:
        return areas, np.zeros((len(table), len(table))), units.count
    sums = np.array([
        [np.bincount(units.row[side], row[side], units.count) for row in deviations] for side in (truth, ~truth)
    ])  # fmt: skip
    own = sums[0] @ sums[0].T * with_positive / (with_positive - 1) / positives**2
    other = sums[1] @ sums[1].T * with_negative / (with_negative - 1) / negatives**2
    shared = sums[0] @ sums[1].T * units.count / (units.count - 1) / (positives * negatives)
    return areas, own + other + shared + shared.T, units.count


def _placements(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each row the share of rows of the other outcome that it is ranked rightly against; ties count half."""
    from scipy.stats import rankdata

    everyone = rankdata(scores)
    below = np.empty(len(scores))  # rows of the other outcome with a lower score, ties half
    for side in (truth, ~truth):
        below[side] = (everyone[side] - rankdata(scores[side])) / (~side).sum()
    return np.where(truth, below, 1 - below)


def _untested(difference: float | None, units: int, test: str) -> Comparison:
    return Comparison(Estimate(difference, None, None, units, test), None, test)


def _name(test: str, patients: Any) -> str:
    return test if patients is None else f"{test}, clustered by patient (Obuchowski)"


TEST = "paired bootstrap over patients"


def compare_metrics(
    first: "Predictions", second: "Predictions", resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Comparison]:
    """Every metric of `first` minus that of `second`, with 95% interval and two-sided p value, over patients.

    Both models are measured on the same draws, so that what makes a draw easy for both cancels. Patients are drawn
    as in `Predictions.intervals`, intervals are percentiles, and p values those of Davison and Hinkley (1997, section
    4.2). For a single AUROC `compare_aurocs` needs no resampling.

    Args:
        first, second: of two models for the same images, in one order.
        resamples, seed: as in `Predictions.intervals`.

    Raises:
        BadDataError: other ids, classes or labels.
    """
    if not (first.problem_type == second.problem_type and first.class_names == second.class_names
            and np.array_equal(first.ids, second.ids) and np.array_equal(first.targets, second.targets)):  # fmt: skip
        raise BadDataError("the predictions are not of the same images with the same labels, in one order")
    measured = first.metrics(), second.metrics()
    values = {name: _minus(value, measured[1][name]) for name, value in measured[0].items()}
    found: dict[str, Comparison] = {}
    for names, units in first.resampling(values):
        statistic = partial(_differences, first, second, names)
        drawn = draw(statistic, units, resamples, seed, "percentile")
        for name in names:
            estimate = drawn.interval(name, values[name])
            p_value = None if estimate.low is None else _p_value(drawn.samples[name])
            found[name] = Comparison(estimate, p_value, TEST)
    for name in values.keys() - found.keys():
        found[name] = Comparison(replace(first.without_interval(name), value=values[name]), None, TEST)
    return {name: found[name] for name in values}


def _differences(
    first: "Predictions", second: "Predictions", names: Sequence[str], weights: np.ndarray
) -> dict[str, np.ndarray]:
    ones, others = (weighted_metrics(side.rows, names, weights) for side in (first, second))
    return {name: ones[name] - others[name] for name in names}


def _p_value(sample: np.ndarray) -> float:
    """Twice the smaller share of resamples on one side of 0, counting the whole set as one of them, so never 0."""
    sample = sample[~np.isnan(sample)]
    tails = [(np.sum(side) + 1) / (len(sample) + 1) for side in (sample <= 0, sample >= 0)]
    return float(min(1.0, 2 * min(tails)))


def _minus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def over_seeds(values: Sequence[float | None], as_paper: bool = False) -> Estimate:
    """Mean over the seeds of one experiment with the 95% interval of Student's t, which holds from two seeds on.

    The interval tells how training varies, not how the result would vary with other patients.

    Args:
        values: one per seed; an undefined one (None or NaN) leaves the mean undefined.
        as_paper: the paper's interval instead, mean ± 1.96 SD/√n (Zhou et al. 2023, captions of figures 2 to 4). It is
            narrow: of 2, 3, 5 and 10 seeds it holds the true mean in 70, 81, 88 and 92% of experiments.

    Returns:
        n is the number of seeds; one seed has no interval.
    """
    from scipy.stats import t

    found = _finite(values)
    if found is None:
        return Estimate(None, None, None, len(values), "mean over seeds")
    mean = float(found.mean())
    if len(found) < 2:
        return Estimate(mean, None, None, len(found), "single seed")
    quantile, name = (Z, "1.96") if as_paper else (float(t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)), "t")
    half = quantile * float(found.std(ddof=1)) / len(found) ** 0.5
    return Estimate(mean, mean - half, mean + half, len(found), f"mean ± {name} SD/√n over seeds")


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
        BadDataError: paired samples of different sizes.
    """
    from scipy import stats

    name = "paired t-test over seeds" if paired else "t-test over seeds"
    if paired and len(first) != len(second):
        raise BadDataError(f"{len(first)} and {len(second)} values cannot be paired; give one of each per seed")
    seeds = min(len(first), len(second))
    one, other = _finite(first), _finite(second)
    if one is None or other is None:
        return _untested(None, seeds, name)
    difference = float(one.mean() - other.mean())
    spread = np.ptp(one - other) if paired else max(np.ptp(one), np.ptp(other))
    if seeds < 2 or spread < 1e-12:
        return _untested(difference, seeds, name)
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


BOTH = "t-test, variance over patients (bootstrap) + seeds"


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
        raise BadDataError(f"{len(one)} and {len(other)} trainings cannot be paired; give one of each per seed")
    difference = float(one.mean() - other.mean())
    if not np.isfinite(difference):
        return _untested(None, patients, BOTH)
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < MIN_DEFINED:
        return _untested(difference, patients, BOTH)
    terms = [(float(drawn.var(ddof=1)), patients - 1)]
    terms += [_mean_variance(one - other)] if paired else [_mean_variance(one), _mean_variance(other)]
    variance = sum(term for term, _ in terms)
    if variance < 1e-24:
        return _untested(difference, patients, BOTH)
    from scipy.stats import t

    freedom = variance**2 / sum(term**2 / degrees for term, degrees in terms if term > 0)
    error = variance**0.5
    half = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    estimate = Estimate(difference, difference - half, difference + half, patients, BOTH)
    return Comparison(estimate, float(2 * t.sf(abs(difference) / error, freedom)), BOTH)


def _mean_variance(values: np.ndarray) -> tuple[float, int]:
    """Variance of the mean, and its degrees of freedom; none for a single value."""
    if len(values) < 2:
        return 0.0, 1
    return float(values.var(ddof=1)) / len(values), len(values) - 1
