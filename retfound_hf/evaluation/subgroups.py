"""Metrics per group of patients or images (age band, sex, camera, site), and the gap between groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import BadArgumentError, BadDataError, require
from .bootstrap import (
    CONFIDENCE,
    MIN_DEFINED,
    RESAMPLES,
    Comparison,
    Draws,
    Estimate,
    Statistic,
    Values,
    draw,
    patient_numbers,
    rarer_side,
)
from .intervals import find_intervals
from .metrics import metric_of, metrics_for, weighted_metrics

if TYPE_CHECKING:
    from .predictions import Predictions

UNKNOWN = "unknown"
GAP = "gap"  # in place of the names of two groups, where none can be told
MOST_VALUES = 6  # a column of more different numbers is cut into bands
BANDS = 4


def column_groups(values: Any, edges: Sequence[float] | None = None) -> np.ndarray:
    """The group of each row, object (N,): the value as text, a band such as `50–<65`, or `unknown` where missing.

    Args:
        values: a column of a table.
        edges: where bands of numbers start; by default columns of more than 6 different numbers are cut at their
            quartiles, others are left as they are.

    Raises:
        BadDataError: edges for a column that does not hold numbers.
        BadArgumentError: edges that do not rise.
    """
    column = pd.Series(np.asarray(values, dtype=object))
    numbers = pd.to_numeric(column, errors="coerce")
    numeric = bool((numbers.notna() == column.notna()).all()) and bool(numbers.notna().any())
    if edges is not None:
        if not numeric:
            wrong = column[numbers.isna() & column.notna()]
            message = f"bands need numbers, and the column holds {list(wrong[:3])}; leave out the edges"
            raise BadDataError(message, rows=wrong.index)
        if not len(edges) or not (np.diff(edges) > 0).all():
            raise BadArgumentError(f"edges of bands {list(edges)} must rise, as 50,65", field="edges", value=edges)
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
# Of fewer patients, or fewer with or without a class, the resamples tell too little for a comparison.
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
    predictions: "Predictions",
    groups: Any,
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
        predictions: of the whole set.
        groups: (N,) names, see `column_groups`.
        metrics: names of metrics; by default those marked `by_group`, such as AUROC, or MAE.
        resamples, seed: as in `Predictions.intervals`.

    Returns:
        Groups in the order of `in_order`, and one gap per metric that at least two groups have. Groups of fewer than
        10 patients have values alone, as have metrics without interval, such as the ECE. Groups with fewer than 10
        patients with a class, or without it, have intervals but are not compared: their gaps would be found by chance
        too often.
    """
    groups = np.asarray(groups, dtype=object)
    if len(groups) != len(predictions):
        raise BadDataError(f"{len(groups)} groups were given for {len(predictions)} rows; give one per row")
    names = in_order(groups)
    wanted = metrics or [metric.name for metric in metrics_for(predictions.problem_type) if metric.by_group]
    for metric in wanted:
        require("metric", metric, predictions.metric_names)
    rows = {name: np.flatnonzero(groups == name) for name in names}
    parts = {name: predictions.select(members) for name, members in rows.items()}
    found = {name: {metric: part.without_interval(metric) for metric in wanted if metric_of(metric).interval is None}
             for name, part in parts.items()}  # fmt: skip
    sizes = {name: fewest_patients(part) for name, part in parts.items()}
    gaps = []
    for chosen, units in predictions.resampling(wanted):
        statistic = _statistic(predictions, rows, parts, chosen)
        whole, drawn = statistic(np.ones((1, len(groups)))), draw(statistic, units, resamples, seed)
        for (metric, name), (value,) in whole.items():
            found[name][metric] = _estimate(parts[name], metric, None if np.isnan(value) else float(value), resamples)
        gaps += [gap for metric in chosen if (gap := _gap(metric, found, drawn, sizes)) is not None]
    return (
        [Group(name, len(rows[name]), {metric: found[name][metric] for metric in wanted}) for name in names],
        sorted(gaps, key=lambda gap: wanted.index(gap.metric)),
    )


def _statistic(
    predictions: "Predictions", rows: Mapping[str, np.ndarray], parts: "Mapping[str, Predictions]",
    metrics: Sequence[str],
) -> Statistic:  # fmt: skip
    """Values by (metric, group)."""
    lacking: set[str] = set()
    if predictions.truth is not None:
        sides = predictions.rows.two_sided
        lacking = {name for name, part in parts.items() if not np.array_equal(part.rows.two_sided, sides)}

    def statistic(weights: np.ndarray) -> Values:
        values: Values = {}
        for name, part in parts.items():
            measured = weighted_metrics(part.rows, metrics, weights[:, rows[name]])
            for metric in metrics:
                hidden = name in lacking and "/" not in metric and metric_of(metric).within_class
                values[metric, name] = np.full(len(weights), np.nan) if hidden else measured[metric]
        return values

    return statistic


def _estimate(part: "Predictions", metric: str, value: float | None, resamples: int) -> Estimate:
    """A group's own interval; none with fewer than 10 patients."""
    patients = len(np.unique(patient_numbers(part.patients, len(part))))
    if patients < FEWEST:
        return Estimate(value, None, None, patients, f"no interval: {patients} patients, and {FEWEST} are needed")
    return find_intervals(part, {metric: value}, resamples, 0)[metric]


def fewest_patients(part: "Predictions") -> int:
    """Patients with or without a class, where they are fewest; of numbers all patients."""
    row = patient_numbers(part.patients, len(part))
    if part.truth is None:
        return len(np.unique(row))
    return rarer_side(part.truth[:, part.rows.two_sided], row)


def _gap(metric: str, found: dict[str, dict[str, Estimate]], draws: Draws, sizes: Mapping[str, int]) -> Gap | None:
    drawn, patients = draws.samples, draws.patients
    names = [name for name, of in found.items() if of[metric].interval is not None]
    if len(names) < 2:
        return None
    large = [name for name in names if sizes[name] >= FEWEST]
    resamples, compared = len(drawn[metric, names[0]]), _defined_together(large, metric, drawn)
    left_out = tuple(name for name in names if name not in compared)
    if len(compared) < 2:
        why = f"no gap: fewer than two groups have {FEWEST} patients with and without each class"
        why = why if len(large) < 2 else f"no gap: fewer than {MIN_DEFINED} resamples define two groups"
        none = Estimate(None, None, None, patients, why)
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


def subgroups_table(
    predictions: "Predictions", columns: Mapping[str, Sequence[float] | None], resamples: int = RESAMPLES
) -> pd.DataFrame:
    """A row per column, group and metric, and a row per column and metric for the gap, with its p value.

    The gap's group is such as `A - B`, or `gap` where none can be told; `method` says how, or why there is none.

    Args:
        predictions: with `columns`.
        columns: edges of the bands of each column, None where none are given.
        resamples: of the bootstrap over patients.
    """
    found: list[dict[str, Any]] = []
    for column, edges in columns.items():
        groups, gaps = subgroup_metrics(
            predictions, column_groups(predictions.columns[column], edges), resamples=resamples
        )
        for group in groups:
            for metric, estimate in group.metrics.items():
                found.append({"column": column, "group": group.name, "rows": group.rows, "metric": metric,
                              **estimate_cells(estimate), "p_value": None, "method": estimate.method})  # fmt: skip
        for gap in gaps:
            difference = gap.comparison.difference
            pair = f"{gap.first} - {gap.second}" if gap.first else GAP
            without = f"; without {', '.join(gap.left_out)}: too few patients" if gap.first and gap.left_out else ""
            found.append({"column": column, "group": pair, "rows": len(predictions), "metric": gap.metric,
                          **estimate_cells(difference), "p_value": gap.comparison.p_value,
                          "method": difference.method + without})  # fmt: skip
    return pd.DataFrame(found)


def without_small_groups(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Rows of a `subgroups.csv` that others may see: none on fewer than `FEWEST` patients, and no gap to them."""
    small = {(row["column"], row["group"]) for row in rows if not float(row["n"]) >= FEWEST}

    def tells(row: dict[str, str], group: str) -> bool:
        name = row["group"]
        return name == group or name.startswith(f"{group} - ") or name.endswith(f" - {group}")

    return [row for row in rows if not any(row["column"] == column and tells(row, group) for column, group in small)]


def estimate_cells(estimate: Estimate) -> dict[str, Any]:
    """`value`, `low`, `high`, `n` and `undefined` of an estimate, as tables hold them."""
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "n", "undefined")}
