"""Metrics per group of patients or images (age band, sex, camera, site), and the gap between groups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from ..errors import RetFoundError, require
from .bootstrap import MIN_DEFINED, RESAMPLES, Statistic, bootstrap, is_skewed, no_interval, passes
from .estimates import CONFIDENCE, Comparison, Estimate, Patients, patients_of
from .metrics import METRICS, Values, metric_names, metric_of, metrics_for, plain_metrics, weighted_metrics
from .predictions import Predictions
from .validation import ProblemType

UNKNOWN = "unknown"
MOST_VALUES = 6  # a column of more different numbers is cut into bands
BANDS = 4


def column_groups(values: Any, edges: Sequence[float] | None = None) -> np.ndarray:
    """The group of each row, object (N,): the value as text, a band such as `50–<65`, or `unknown` where missing.

    Args:
        values: a column of a table.
        edges: where bands of numbers start; by default columns of more than 6 different numbers are cut at their
            quartiles, others are left as they are.

    Raises:
        RetFoundError: edges for a column that does not hold numbers, or edges that do not rise.
    """
    import pandas as pd

    column = pd.Series(np.asarray(values, dtype=object))
    numbers = pd.to_numeric(column, errors="coerce")
    numeric = bool((numbers.notna() == column.notna()).all()) and bool(numbers.notna().any())
    if edges is not None:
        if not numeric:
            wrong = column[numbers.isna() & column.notna()]
            raise RetFoundError(f"bands need numbers, and the column holds {list(wrong[:3])}; leave out the edges")
        if not len(edges) or not (np.diff(edges) > 0).all():
            raise RetFoundError(f"edges of bands {list(edges)} must rise, as 50,65")
    elif numeric and numbers.nunique() > MOST_VALUES:
        quantiles = np.quantile(numbers.dropna(), np.arange(1, BANDS) / BANDS)
        edges = np.unique([float(f"{edge:.3g}") for edge in quantiles])
    if edges is None:
        return np.array([UNKNOWN if pd.isna(value) else _plain(value) for value in column], dtype=object)
    marks = [f"{edge:g}" for edge in edges]
    names = [f"<{marks[0]}", *(f"{a}–<{b}" for a, b in pairwise(marks)), f"≥{marks[-1]}"]
    band = np.searchsorted(edges, numbers.to_numpy(), side="right")
    return np.where(numbers.isna(), UNKNOWN, np.array(names, dtype=object)[band])


def in_order(groups: np.ndarray) -> list[str]:
    """The groups that occur: bands and numbers by value, other names by alphabet, `unknown` last."""

    def key(name: str) -> tuple[int, float, str]:
        start = name.lstrip("<≥").split("–")[0]
        try:
            return name == UNKNOWN, float(start) - name.startswith("<") * 1e-9, name
        except ValueError:
            return name == UNKNOWN, 0.0, name

    return sorted(set(groups), key=key)


def _plain(value: Any) -> str:
    whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if whole else str(value).strip()


TEST = "bootstrap over patients, largest studentised difference of all pairs"
# Of fewer patients the resamples tell too little for an interval, or for a comparison.
FEWEST = 10


@dataclass(frozen=True)
class Group:
    """One group: its name, its number of rows, and its metrics by name."""

    name: str
    rows: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Gap:
    """The difference between two groups that stands out most: `first` minus `second`, p of no group differing.

    Attributes:
        comparison: without value and p value, and `first` and `second` empty, where too few resamples define two of
            the groups at once, as the method of its difference says.
        left_out: groups that were not compared, so that enough resamples define all others at once.
    """

    metric: str
    first: str
    second: str
    comparison: Comparison
    left_out: tuple[str, ...] = ()


def subgroup_metrics(
    problem_type: ProblemType,
    labels: Any,
    scores: Any,
    class_names: Sequence[str],
    groups: Any,
    patients: Any = None,
    metrics: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[list[Group], list[Gap]]:
    """Every group's metrics with 95% intervals, and for each metric the gap between groups.

    The gap's interval and p value allow for its being the largest of all pairs: they rest on the largest studentised
    difference of any two groups in each resample, as Tukey's do, so that 5% of columns that mean nothing show a gap.
    All groups are measured on the same draws of patients, who may have images in several of them (cameras).

    An average over classes is undefined in a group that lacks a class which the set has.

    Args:
        groups: (N,) names, see `bands.column_groups`.
        metrics: names of `compute_metrics`; by default AUROC, balanced accuracy and Brier score, or MAE and RMSE.
        problem_type, labels, scores, class_names, patients, resamples, seed: as `bootstrap.metric_intervals`.

    Returns:
        Groups in the order of `bands.in_order`, and one gap per metric that at least two groups have.
        Groups of fewer than 10 patients have values alone.
    """
    labels, scores, groups = np.asarray(labels), np.asarray(scores), np.asarray(groups, dtype=object)
    if len(groups) != len(labels):
        raise RetFoundError(f"{len(groups)} groups were given for {len(labels)} rows; give one per row")
    names = in_order(groups)
    wanted = metrics or [metric.name for metric in metrics_for(problem_type) if metric.by_group]
    for metric in wanted:
        require("metric", metric, metric_names(problem_type, class_names))
    rows = {name: np.flatnonzero(groups == name) for name in names}
    predictions = Predictions(None, scores, labels, class_names, problem_type)
    whole = predictions.rows
    parts = {}
    for name, members in rows.items():
        part = predictions.select(members).rows
        lacking = whole.truth is not None and not np.array_equal(part.two_sided, whole.two_sided)
        parts[name] = (members, part, lacking)
    found: dict[str, dict[str, Estimate]] = {name: {} for name in names}
    gaps = []
    for chosen, units in passes(whole, wanted, patients):
        estimates, drawn = _draw(_statistic(parts, chosen), units, resamples, seed)
        for (metric, name), estimate in estimates.items():
            own = replace(estimate, n=len(np.unique(units.row[rows[name]])))
            found[name][metric] = own if own.n >= FEWEST else replace(own, low=None, high=None)
        gaps += [gap for metric in chosen if (gap := _gap(metric, found, drawn, units.count)) is not None]
    for metric in wanted:
        if not metric_of(metric).has_interval:
            for name, (members, part, _) in parts.items():
                count = patients_of(None if patients is None else np.asarray(patients, object)[members], len(members))
                value = plain_metrics(part, [metric])[metric]
                found[name][metric] = Estimate(value, None, None, count.count, no_interval(metric))
    order = list(wanted)
    return (
        [Group(name, len(rows[name]), {metric: found[name][metric] for metric in order}) for name in names],
        sorted(gaps, key=lambda gap: order.index(gap.metric)),
    )


def _statistic(parts: dict[str, Any], metrics: Sequence[str]) -> Statistic:
    def statistic(weights: np.ndarray) -> Values:
        values: dict[Any, np.ndarray] = {}
        for name, (members, part, lacking) in parts.items():
            measured = weighted_metrics(part, metrics, weights[:, members])
            for metric in metrics:
                hidden = lacking and "/" not in metric and METRICS[metric].within_class
                values[metric, name] = np.full(len(weights), np.nan) if hidden else measured[metric]
        return values

    return statistic


def _draw(statistic: Statistic, units: Patients, resamples: int, seed: int) -> tuple[dict[Any, Estimate], Values]:
    """Estimates and bootstrap values by (metric, group)."""
    drawn: list[Values] = []  # of the resamples, then of the jackknife

    def kept(weights: np.ndarray) -> Values:
        drawn.append(statistic(weights))
        return drawn[-1]

    whole = statistic(np.ones((1, len(units.row))))
    values = {key: None if np.isnan(value[0]) else float(value[0]) for key, value in whole.items()}
    blocks = bootstrap(kept, values, units, resamples, seed, skewed=lambda key: is_skewed(key[0]))
    samples = {key: np.concatenate([part[key] for part in drawn])[:resamples] for key in values}
    return blocks, samples


def _gap(metric: str, found: dict[str, dict[str, Estimate]], drawn: Values, patients: int) -> Gap | None:
    names = [name for name, of in found.items() if of[metric].interval is not None]
    if len(names) < 2:
        return None
    resamples, compared = len(drawn[metric, names[0]]), _defined_together(names, metric, drawn)
    left_out = tuple(name for name in names if name not in compared)
    if len(compared) < 2:
        none = Estimate(None, None, None, patients, f"no gap: fewer than {MIN_DEFINED} resamples define two groups")
        return Gap(metric, "", "", Comparison(none, None, TEST), left_out)
    names = compared
    values = np.array([found[name][metric].value for name in names])
    sample = np.array([drawn[metric, name] for name in names])
    sample = sample[:, ~np.isnan(sample).any(axis=0)]
    pairs = list(combinations(range(len(names)), 2))
    differences = np.array([values[one] - values[other] for one, other in pairs])
    deviations = np.array([sample[one] - sample[other] for one, other in pairs])
    deviations = deviations - deviations.mean(axis=1, keepdims=True)
    errors = deviations.std(axis=1)
    largest = np.abs(deviations / errors[:, None]).max(axis=0)
    best = int(np.abs(differences / errors).argmax())
    one, other = pairs[best] if differences[best] >= 0 else pairs[best][::-1]
    difference, half = abs(differences[best]), np.quantile(largest, CONFIDENCE) * errors[best]
    p_value = (np.sum(largest >= difference / errors[best]) + 1) / (len(largest) + 1)
    undefined = 1 - sample.shape[1] / resamples
    estimate = Estimate(
        float(difference), float(difference - half), float(difference + half), patients, TEST, undefined
    )
    return Gap(metric, names[one], names[other], Comparison(estimate, float(p_value), TEST), left_out)


def _defined_together(names: Sequence[str], metric: str, drawn: Values) -> list[str]:
    """The groups without those most often undefined, until at least 100 resamples define all that are left."""
    undefined = {name: np.isnan(drawn[metric, name]) for name in names}
    kept = list(names)
    while kept and (~np.any([undefined[name] for name in kept], axis=0)).sum() < MIN_DEFINED:
        kept.remove(max(kept, key=lambda name: undefined[name].sum()))
    return kept
