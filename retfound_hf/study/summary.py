"""From jobs to statements: means over seeds with their intervals, and the reference model against the others."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.seeds import compare_seeds, holm, over_seeds
from ..evaluation.seeds_and_patients import compare_over_both
from .folder import JobResult
from .layout import COMPARISON_COLUMNS, SUMMARY_COLUMNS
from .reading import LOWER_IS_BETTER
from .resampling import Resampled, mean_of
from .settings import Study

CELL = ("data", "set", "method", "fraction")
Table = Mapping[tuple[str, str], Mapping[str, Resampled]]  # by job and evaluated set, then by metric


@dataclass(frozen=True)
class Trained:
    """One model in one cell and one metric: its jobs by seed."""

    model: str
    seeds: tuple[int, ...]
    jobs: tuple[Resampled, ...]

    @property
    def values(self) -> list[float]:
        """The metric of every job."""
        return [job.value for job in self.jobs]

    @property
    def mean(self) -> float:
        """NaN where a job left the metric undefined."""
        return float(np.mean(self.values))


def summarise(study: Study, jobs: Sequence[JobResult], table: Table) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables `summary.csv` and `comparisons.csv` of finished jobs.

    The reference is compared with every other model of a cell, on `test` and the external sets: validation chose the
    weights, and says nothing about unseen patients. Holm's correction is over all comparisons of a metric.
    """
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for cell, metric, models in _cells(study, jobs, table):
        compared = _compare(study, models, metric) if cell["set"] != "val" and metric in study.metrics else []
        pairs += [{**cell, "metric": metric, **pair} for pair in compared]
        rows += [{**cell, "metric": metric, **_row(trained, metric)} for trained in models]
    for metric in study.metrics:
        family = [pair for pair in pairs if pair["metric"] == metric]
        for pair, adjusted in zip(family, holm([pair["p_value"] for pair in family]), strict=True):
            pair["p_holm"] = adjusted
    summary = pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
    comparisons = pd.DataFrame(pairs, columns=list(COMPARISON_COLUMNS))
    return _with_best(summary, comparisons), comparisons


def _cells(study: Study, jobs: Sequence[JobResult], table: Table) -> Any:
    """Every cell and metric with the models that have jobs there, in the order of the study."""
    by_cell: dict[tuple[Any, ...], dict[str, list[JobResult]]] = {}
    order = {model.label: index for index, model in enumerate(study.models)}
    for job in jobs:
        for evaluated in study.data_set(job.data).evaluated:
            key = (job.data, evaluated, job.method, job.fraction)
            by_cell.setdefault(key, {}).setdefault(job.model, []).append(job)
    for key, models in by_cell.items():
        jobs_here = [job for found in models.values() for job in found]
        for name in dict.fromkeys(name for job in jobs_here for name in table[job.id, key[1]]):
            trained = [
                Trained(model, tuple(job.seed for job in found), tuple(table[job.id, key[1]][name] for job in found))
                for model, found in sorted(models.items(), key=lambda item: order[item[0]])
            ]
            yield dict(zip(CELL, key, strict=True)), name, trained


def _row(trained: Trained, metric: str) -> dict[str, Any]:
    seeds, mean = over_seeds(trained.values), mean_of(trained.jobs)
    patients = mean.estimate(metric)
    return {
        "model": trained.model, "seeds": seeds.n, "mean": seeds.value,
        "sd": float(np.std(trained.values, ddof=1)) if seeds.n > 1 else None,
        "seeds_low": seeds.low, "seeds_high": seeds.high, "low": patients.low, "high": patients.high,
        "interval": patients.method if patients.interval else "", "cases": mean.cases, "patients": mean.patients,
    }  # fmt: skip


def _compare(study: Study, models: Sequence[Trained], metric: str) -> list[dict[str, Any]]:
    """The reference against every other model; none where it has no job."""
    reference = next((one for one in models if one.model == study.reporting.reference), None)
    if reference is None:
        return []
    others = [one for one in models if one is not reference]
    sign = -1 if metric in LOWER_IS_BETTER else 1
    defined = [one for one in others if not np.isnan(one.mean)]
    best = max(defined, key=lambda one: sign * one.mean, default=None)  # of equal ones the first
    return [{**_pair(reference, other), "best": other is best} for other in others]


def _pair(first: Trained, second: Trained) -> dict[str, Any]:
    drawn = mean_of(first.jobs).drawn - mean_of(second.jobs).drawn
    patients = first.jobs[0].patients
    found = compare_over_both(first.values, second.values, drawn, patients, paired=first.seeds == second.seeds)
    difference = found.difference
    return {
        "model": first.model, "other": second.model, "difference": difference.value, "low": difference.low,
        "high": difference.high, "p_value": found.p_value, "test": found.test,
        "p_seeds": compare_seeds(first.values, second.values).p_value,
    }  # fmt: skip


def _with_best(summary: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """The summary with the comparison to the best competitor on the rows of the reference."""
    best = comparisons[comparisons["best"].astype(bool)].rename(
        columns={"other": "competitor", "low": "difference_low", "high": "difference_high"}
    )
    shared = [*CELL, "metric", "model"]
    more = ["competitor", "difference", "difference_low", "difference_high", "p_value", "p_holm", "p_seeds"]
    merged = summary.drop(columns=more).merge(best[[*shared, *more]], on=shared, how="left")
    return merged[list(SUMMARY_COLUMNS)]
