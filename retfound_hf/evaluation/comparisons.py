"""Comparisons of models: paired bootstrap, DeLong, over seeds, over seeds and patients, Holm's correction."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadDataError
from .bootstrap import CONFIDENCE, MIN_DEFINED, RESAMPLES, Comparison, Estimate, Z, draw, patient_numbers, patients_of
from .intervals import Area, area_interval, area_of, student, too_few
from .metrics import metric_of, weighted_metrics

if TYPE_CHECKING:
    from .predictions import Predictions


def auroc_interval(truth: Any, scores: Any, patients: Any = None) -> Estimate:
    """AUROC of one classifier with the 95% interval of `intervals.area_interval`, which stays between 0 and 1.

    Args:
        truth: bool (N,).
        scores: float (N,), higher for more likely.
        patients: (N,) names whose rows are correlated (both eyes, repeat images); None or NaN: independent.

    Returns:
        Undefined where one outcome is absent; without interval where one patient alone has an outcome.
    """
    (area,), count = _areas(truth, [scores], patients)
    return area_interval(area, count)


def compare_aurocs(truth: Any, first: Any, second: Any, patients: Any = None) -> Comparison:
    """DeLong's test of two classifiers' AUROCs on the same rows, by Student's t; arguments as `auroc_interval`.

    The degrees of freedom are the patients of the rarer outcome less one: with few of them DeLong's variance is itself
    uncertain, and the normal quantile finds differences that are not there.

    Returns:
        first - second. Without interval and p value where the difference has no variance, as between equal rankings.
    """
    areas, count = _areas(truth, [first, second], patients)
    return _compare_areas([areas], count)


def _compare_areas(pairs: Sequence[Sequence[Area | None]], count: int) -> Comparison:
    """The mean over classes of the first area less the second; classes without areas are left out."""
    from scipy.stats import t

    known = [(one, other) for one, other in pairs if one is not None and other is not None]
    if not known:
        return _untested(None, count, DELONG)
    difference = float(np.mean([one.value - other.value for one, other in known]))
    influence = np.mean([one.influence - other.influence for one, other in known], axis=0)
    variance, rarer = float(influence @ influence), min(min(one.patients) for one, _ in known)
    if variance < 1e-15 or rarer < 2:
        return _untested(difference, count, DELONG)
    error, half = variance**0.5, student(rarer) * variance**0.5
    estimate = Estimate(difference, difference - half, difference + half, count, DELONG)
    return Comparison(estimate, float(2 * t.sf(abs(difference) / error, rarer - 1)), DELONG)


def _areas(truth: Any, scores: list[Any], patients: Any) -> tuple[list[Area | None], int]:
    """AUROCs of several classifiers, None where they are undefined, and the number of patients."""
    truth = np.asarray(truth, dtype=bool)
    table = np.asarray(scores, dtype=np.float64)
    if truth.ndim != 1 or table.shape[1:] != truth.shape or not len(truth):
        raise BadDataError(f"truth {truth.shape} and scores {table.shape[1:]} must both be (N,), N > 0")
    if not np.isfinite(table).all():
        raise BadDataError("scores hold values that are NaN or infinite; only finite numbers are accepted")
    units = patients_of(patients, len(truth))
    return [area_of(truth, row, units.row, units.count) for row in table], units.count


def _untested(difference: float | None, units: int, test: str) -> Comparison:
    return Comparison(Estimate(difference, None, None, units, test), None, test)


TEST = "paired bootstrap over patients"
FEWEST = 10  # patients of the rarer class
DELONG = "DeLong's test over patients (Obuchowski), t"


def compare_metrics(
    first: "Predictions", second: "Predictions", resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Comparison]:
    """Every metric of `first` minus that of `second`, with 95% interval and two-sided p value, over patients.

    AUROCs are compared as by `compare_aurocs`. For all others both models are measured on the same draws of patients,
    so that what makes a draw easy for both cancels; intervals are percentiles, and p values those of Davison and
    Hinkley (1997, section 4.2). With fewer than 10 patients of the rarer class the bootstrap finds too many
    differences: these metrics then have no interval and no p value, and `method` says so.

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
    if first.truth is not None:
        row = patient_numbers(first.patients, len(first))
        count = int(row.max()) + 1
        areas = [[area_of(first.truth[:, c], side.scores[:, c], row, count) for side in (first, second)]
                 for c in range(len(first.class_names))]  # fmt: skip
        found["auroc"] = _compare_areas(areas, count)
        named = zip(first.class_names, areas, strict=True)
        found |= {f"auroc/{name}": _compare_areas([pair], count) for name, pair in named}
        rarer = min((min(one.patients) for one, _ in areas if one is not None), default=0)
        if rarer < FEWEST:
            others = [name for name in values if name not in found and metric_of(name).interval]
            found |= {name: Comparison(too_few(values[name], count, rarer, FEWEST), None, TEST) for name in others}
    for names, units in first.resampling([name for name in values if name not in found]):
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
    found = _finite(values)
    if found is None:
        return Estimate(None, None, None, len(values), "mean over seeds")
    mean = float(found.mean())
    if len(found) < 2:
        return Estimate(mean, None, None, len(found), "single seed")
    quantile, name = (Z, "1.96") if as_paper else (student(len(found)), "t")
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
