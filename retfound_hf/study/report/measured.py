"""Numbers that the report computes itself, as it says them and as results.csv holds them."""

from typing import Any

from ...evaluation.estimate import Estimate
from .numbers import interval, is_missing, number
from .systems import System


def said(estimate: Estimate) -> str:
    """Such as `0.912`, and its interval on the next line."""
    if is_missing(estimate.value):
        return "–"
    # On a line of its own: four of them stand side by side.
    ends = "" if estimate.interval is None else f"\n({interval(estimate.low, estimate.high)})"
    return number(estimate.value) + ends


def result_row(system: System, evaluated: str, metric: str, value: Estimate, cases: int) -> dict[str, Any]:
    """A row of results.csv for a number that the report computes, on so many cases."""
    job = system.job
    return {
        "job": job.id, "data": job.data, "model": job.model, "method": job.method, "fraction": job.fraction,
        "seed": job.seed, "set": evaluated, "metric": metric, "value": value.value, "low": value.low,
        "high": value.high, "interval": value.method if value.interval else "", "cases": cases,
        "patients": value.n or None, "seconds": job.seconds, "status": job.status, "reason": "",
    }  # fmt: skip
