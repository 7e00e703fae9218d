"""Adaptation efficiency: how soon validation comes near to what it ends with."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from .folder import JobResult
from .layout import CURVE_COLUMNS

SHARE = 0.95


def validation_curve(history: Sequence[dict[str, Any]], metric: str = "auroc") -> pd.DataFrame:
    """Columns `epoch`, `seconds` since training began, `value`: one row per evaluation on the validation split.

    Empty for a linear head, whose log has no epochs, and where the metric was undefined.
    """
    key = f"eval_{metric}"
    rows = [(entry["epoch"], entry.get("seconds"), entry[key]) for entry in history if key in entry]
    return pd.DataFrame(rows, columns=["epoch", "seconds", "value"]).drop_duplicates("epoch", ignore_index=True)


def adaptation(history: Sequence[dict[str, Any]], metric: str = "auroc") -> dict[str, Any]:
    """`epochs`, `best_epoch`, `final`, `epochs_to_95`, `seconds_to_95`, see `folder.JobResult`; empty without a curve.

    `final` is the best validation value, which is that of the weights that are kept.
    """
    curve = validation_curve(history, metric)
    if curve.empty:
        return {}
    best = curve.loc[curve["value"].idxmax()]
    reached = curve[curve["value"] >= SHARE * best["value"]].iloc[0]
    return {
        "metric": metric,
        "epochs": float(curve["epoch"].max()),
        "best_epoch": float(best["epoch"]),
        "final": float(best["value"]),
        "epochs_to_95": float(reached["epoch"]),
        "seconds_to_95": None if reached["seconds"] is None else float(reached["seconds"]),
    }


def curve_rows(jobs: Sequence[JobResult], histories: Sequence[list[dict[str, Any]]]) -> pd.DataFrame:
    """The table `efficiency.csv` of finished jobs and their logs."""
    return pd.DataFrame(list(_rows(jobs, histories)), columns=list(CURVE_COLUMNS))


def _rows(jobs: Sequence[JobResult], histories: Sequence[list[dict[str, Any]]]) -> Iterator[tuple[Any, ...]]:
    for job, history in zip(jobs, histories, strict=True):
        for epoch, seconds, value in validation_curve(history).itertuples(index=False):
            yield job.id, job.data, job.model, job.method, job.fraction, job.seed, epoch, seconds, "auroc", value
