"""Tables of a study: summary over seeds, comparisons by resampling, and the study file as text."""

import dataclasses
import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from ..errors import RetFoundError
from ..evaluation.bootstrap import Estimate, draw, patients_of
from ..evaluation.comparisons import compare_over_both, compare_seeds, holm, over_seeds
from ..evaluation.document import CHARACTERISTICS, find_column
from ..evaluation.intervals import find_intervals
from ..evaluation.metrics import lower_is_better, weighted_metrics
from ..evaluation.predictions import Predictions
from ..files import atomic_file, write_json, write_table
from .config import Study
from .jobs import Job, Task, patients_in
from .results import (
    JOB_COLUMNS,
    STUDY_FILE,
    JobResult,
    curve_points,
    ended_jobs,
    predictions_file,
    read_cases,
    read_task,
    reported_metrics,
)

RESULT_COLUMNS = (
    "job", "data", "model", "method", "fraction", "seed", "set", "metric", "value", "low", "high", "interval", "cases",
    "patients", "seconds", "status", "reason",
)  # fmt: skip
# `mean` over `seeds` jobs, with their standard deviation and the intervals that they leave (of training; Student's and
# the paper's), and the interval over patients of that mean (`low`, `high`, made by `interval`). On the rows of
# the reference model: its best competitor, the difference to it and the p values, as in comparisons.csv.
SUMMARY_COLUMNS = (
    "data", "set", "method", "fraction", "model", "metric", "seeds", "mean", "sd", "seeds_low", "seeds_high",
    "paper_low", "paper_high", "low", "high", "interval", "cases", "patients", "competitor", "difference",
    "difference_low", "difference_high", "p_value", "p_holm", "p_seeds",
)  # fmt: skip
# `difference` is `model` (the reference) minus `other`; `best` marks the best competitor. `p_value` is of `test`, over
# patients and seeds; it is empty, as are `low` and `high`, where no patients are drawn (ECE, `resamples: 0`). `p_holm`
# is corrected for all comparisons of the metric in the study; `p_seeds` is the paper's t-test over seeds.
COMPARISON_COLUMNS = (
    "data", "set", "method", "fraction", "metric", "model", "other", "best", "difference", "low", "high", "p_value",
    "test", "p_holm", "p_seeds",
)  # fmt: skip
NEEDED = ("id", "image", "patient_id", "eye", "split")
CURVE_COLUMNS = (*JOB_COLUMNS, "epoch", "seconds", "metric", "value")


INTERVALS = "intervals of 2026"  # statistics that an earlier version kept are computed anew


@dataclass(frozen=True)
class Resampled:
    """A metric of one job, on the evaluated set and on sets like it; of several jobs, their mean.

    Attributes:
        value: NaN where undefined.
        low, high, method: the interval over patients, as `Predictions.intervals` finds it; NaN where there is none.
        drawn: (B,) on bootstrap samples of the patients, the same samples for every job on the set; (0,) for a metric
            that has no interval.
        patients, cases: their numbers.
    """

    value: float
    low: float
    high: float
    method: str
    drawn: np.ndarray
    patients: int
    cases: int

    @property
    def estimate(self) -> Estimate:
        """The value with its interval over patients."""
        value, low, high = (None if np.isnan(number) else number for number in (self.value, self.low, self.high))
        return Estimate(value, low, high, self.patients, self.method)


def mean_of(jobs: Sequence[Resampled]) -> Resampled:
    """The mean of a metric over jobs that differ in their seed; undefined where one of them is.

    The ends of its interval are as far from it as those of the jobs on average, less as much as the mean varies less
    than the jobs between bootstrap samples: what the seeds err in differently cancels.
    """
    means = {name: np.mean([getattr(job, name) for job in jobs], axis=0) for name in ("value", "low", "high", "drawn")}
    value, drawn = float(means["value"]), means["drawn"]
    with np.errstate(invalid="ignore", divide="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no draws, or none that vary
        share = np.nanstd(drawn) / np.mean([np.nanstd(job.drawn) for job in jobs])
    share = float(share) if np.isfinite(share) else 1.0
    low, high = (value + share * float(means[end] - value) for end in ("low", "high"))
    return dataclasses.replace(jobs[0], value=value, low=low, high=high, drawn=drawn)


def resampled(folder: Path, study: Study, job_id: str, data: str, evaluated: str) -> dict[str, Resampled]:
    """Every metric of the study, and its values per class, by name; computed now or read from `statistics/`.

    Args:
        folder: of the study.
        study: its settings.
        job_id, data, evaluated: a job, its data set, and which of its sets.
    """
    reporting = study.reporting
    facts = (
        INTERVALS,
        study.metrics,
        reporting.level,
        reporting.aggregation,
        reporting.label_conflicts,
        reporting.resamples,
    )
    stored = predictions_file(folder, job_id, evaluated)
    content = stored.read_bytes() if stored.is_file() else b""  # then `read_cases` says that it is gone
    digest = hashlib.blake2b(repr(facts).encode() + content, digest_size=8).hexdigest()
    path = folder / "statistics" / job_id / f"{evaluated}-{digest}.npz"
    with suppress(Exception):  # absent, or damaged in any way
        return _load(path)
    cases = read_cases(folder, job_id, data, evaluated, reporting)
    _save(path, resample(cases, study.metrics, reporting.resamples))
    return _load(path)


def resample(cases: Predictions, metrics: Sequence[str], resamples: int, seed: int = 0) -> dict[str, Resampled]:
    """The metrics `metrics`, also per class, on `resamples` bootstrap samples of patients, drawn as in `bootstrap`."""
    rows, empty = cases.rows, np.zeros(0)
    names = [name for name in cases.metric_names if name.split("/", 1)[0] in metrics]
    values = cases.values(names)
    try:
        patients = patients_of(cases.patients, len(rows)).count
    except RetFoundError:  # a single patient
        patients, resamples = 1, 0
    none = (np.nan, np.nan, "no interval", empty, patients, len(rows))
    found = {name: Resampled(_or_nan(value), *none) for name, value in values.items()}
    ends = find_intervals(cases, values, resamples, seed) if resamples else {}
    for chosen, units in cases.resampling(names) if resamples else ():
        draws = draw(partial(weighted_metrics, rows, chosen), units, resamples, seed, "percentile")
        for name in chosen:
            found[name] = dataclasses.replace(
                found[name], drawn=draws.samples[name], low=_or_nan(ends[name].low), high=_or_nan(ends[name].high),
                method=ends[name].method,
            )  # fmt: skip
    return found


def _or_nan(number: float | None) -> float:
    return np.nan if number is None else number


def _save(path: Path, table: dict[str, Resampled]) -> None:
    arrays = {f"{row}-{name}": value for row, one in enumerate(table.values()) for name, value in vars(one).items()}
    with atomic_file(path) as partial:
        np.savez(partial, names=np.array(list(table), dtype=str), **arrays)


def _load(path: Path) -> dict[str, Resampled]:
    """Inverse of `_save`; an error of any type where another file, or a damaged one, lies there."""
    with np.load(path) as stored:
        if sum(part.file_size for part in stored.zip.infolist()) > path.stat().st_size:  # nothing is packed in ours
            raise ValueError("it would unpack to more than it is")
        found = {}
        for row, name in enumerate(stored["names"]):
            arrays = {field.name: stored[f"{row}-{field.name}"] for field in dataclasses.fields(Resampled)}
            if any(array.ndim != (field == "drawn") for field, array in arrays.items()):
                raise ValueError("its arrays are of other shapes")
            found[str(name)] = Resampled(
                **{name: array if array.ndim else array.item() for name, array in arrays.items()}
            )
    if len({len(one.drawn) for one in found.values()} - {0}) > 1:
        raise ValueError("its arrays are of other lengths")
    return found


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


def summarise(
    study: Study, jobs: Sequence[JobResult], table: Table, reported: Mapping[str, Sequence[str]] | None = None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tables `summary.csv` and `comparisons.csv` of finished jobs.

    The reference is compared with every other model of a cell, on `test` and the external sets: validation chose the
    weights, and says nothing about unseen patients. Holm's correction is over all comparisons of a metric.

    Args:
        study: the settings.
        jobs: that finished.
        table: their resampled metrics.
        reported: by data set what is compared beside the study's metrics, see `reported_metrics`.
    """
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []
    for cell, metric, models in _cells(study, jobs, table):
        wanted = (*study.metrics, *(reported or {}).get(cell["data"], ()))
        compared = _compare(study, models, metric) if cell["set"] != "val" and metric in wanted else []
        pairs += [{**cell, "metric": metric, **pair} for pair in compared]
        rows += [{**cell, "metric": metric, **_row(trained)} for trained in models]
    for metric in {pair["metric"] for pair in pairs}:
        family = [pair for pair in pairs if pair["metric"] == metric]
        for pair, adjusted in zip(family, holm([pair["p_value"] for pair in family]), strict=True):
            pair["p_holm"] = adjusted
    summary = pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))
    comparisons = pd.DataFrame(pairs, columns=list(COMPARISON_COLUMNS))
    return _with_best(summary, comparisons), comparisons


def _cells(
    study: Study, jobs: Sequence[JobResult], table: Table
) -> Iterator[tuple[dict[str, Any], str, list[Trained]]]:
    """Every cell and metric with the models that have jobs there, in the order of the study."""
    by_cell: dict[tuple[Any, ...], dict[str, list[JobResult]]] = {}
    for job in jobs:
        for evaluated in study.data[job.data].evaluated:
            models = by_cell.setdefault((job.data, evaluated, job.method, job.fraction), {})
            models.setdefault(job.model, []).append(job)
    for key, models in by_cell.items():
        found = {model: models[model] for model in study.models if model in models}
        metrics = {label: [table[job.id, key[1]] for job in models[label]] for label in found}
        for name in dict.fromkeys(name for tables in metrics.values() for one in tables for name in one):
            trained = [
                Trained(label, tuple(job.seed for job in found[label]), tuple(one[name] for one in tables))
                for label, tables in metrics.items()
            ]
            yield dict(zip(CELL, key, strict=True)), name, trained


def _row(trained: Trained) -> dict[str, Any]:
    seeds, paper, mean = over_seeds(trained.values), over_seeds(trained.values, True), mean_of(trained.jobs)
    patients = mean.estimate
    return {
        "model": trained.model, "seeds": seeds.n, "mean": seeds.value,
        "sd": float(np.std(trained.values, ddof=1)) if seeds.n > 1 else None,
        "seeds_low": seeds.low, "seeds_high": seeds.high, "paper_low": paper.low, "paper_high": paper.high,
        "low": patients.low, "high": patients.high,
        "interval": patients.method if patients.interval else "", "cases": mean.cases, "patients": mean.patients,
    }  # fmt: skip


def _compare(study: Study, models: Sequence[Trained], metric: str) -> list[dict[str, Any]]:
    """The reference against every other model; none where it has no job."""
    reference = next((one for one in models if one.model == study.reporting.reference), None)
    if reference is None:
        return []
    others = [one for one in models if one is not reference]
    sign = -1 if lower_is_better(metric) else 1
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


def write_plan(folder: Path, study: Study, tasks: Sequence[Task], jobs: Sequence[Job]) -> None:
    """Write `study.yaml`, `jobs.csv` and `tasks/`, which stand before the first job starts."""
    with atomic_file(folder / STUDY_FILE) as partial:
        partial.write_text(study_text(study), encoding="utf-8")
    rows = [(job.id, job.data, job.model, job.method, job.fraction, job.seed) for job in jobs]
    write_table(folder / "jobs.csv", pd.DataFrame(rows, columns=list(JOB_COLUMNS)))
    for task in tasks:
        _write_task(folder / "tasks" / task.name, task, study.reporting.subgroups)


def write_results(folder: Path, study: Study, jobs: Sequence[Job]) -> tuple[JobResult, ...]:
    """Write the tables of all jobs that have ended, whichever part or machine ran them."""
    ended = ended_jobs(folder, [job.key for job in jobs])
    finished = [job for job in ended if job.status == "finished"]
    table = {
        (job.id, evaluated): resampled(folder, study, job.id, job.data, evaluated)
        for job in tqdm(finished, desc="statistics", unit="job", disable=len(finished) < 2, leave=False)
        for evaluated in study.data[job.data].evaluated
    }
    rows = [row for job in ended for row in _result_rows(study, job, table)]
    write_table(folder / "results.csv", pd.DataFrame(rows, columns=list(RESULT_COLUMNS)))
    curves = [point for job in finished for point in curve_points(folder, job)]
    write_table(folder / "efficiency.csv", pd.DataFrame(curves, columns=list(CURVE_COLUMNS)))
    reported = {data: reported_metrics(study, read_task(folder, data)) for data in {job.data for job in finished}}
    summary, comparisons = summarise(study, finished, table, reported)
    write_table(folder / "summary.csv", summary)
    write_table(folder / "comparisons.csv", comparisons)
    return ended


def _result_rows(study: Study, job: JobResult, table: Table) -> Iterator[dict[str, Any]]:
    facts = {**job.columns, "seconds": job.seconds, "status": job.status, "reason": job.reason}
    if job.status != "finished":
        yield facts
        return
    for evaluated in study.data[job.data].evaluated:
        for name, found in table[job.id, evaluated].items():
            estimate = found.estimate
            yield {
                **facts, "set": evaluated, "metric": name, "value": estimate.value, "low": estimate.low,
                "high": estimate.high, "interval": estimate.method if estimate.interval else "",
                "cases": found.cases, "patients": found.patients,
            }  # fmt: skip


def _write_task(folder: Path, task: Task, subgroups: Sequence[str]) -> None:
    """Write `task.json`, and of the evaluated images the columns that the report needs: none else is copied."""
    labelled, parts = task.labelled, task.parts()
    write_json(
        folder / "task.json",
        {
            "problem_type": labelled.problem_type,
            "class_names": list(labelled.class_names),
            "class_order": labelled.class_order and list(labelled.class_order),
            "label_columns": list(labelled.label_columns),
            "modality": task.data.modality,
            "images": {name: len(rows) for name, rows in parts.items()},
            "patients": {name: patients_in(rows) for name, rows in parts.items()},
        },
    )
    for name in task.data.evaluated:
        # An image that lies in a parquet file has no path of its own.
        rows = parts[name]
        paths = [image if isinstance(image, str) else "" for image in rows["image"]]
        needed = {
            *NEEDED,
            *labelled.label_columns,
            *subgroups,
            *(find_column(rows, title) for title in CHARACTERISTICS),
        }
        write_table(folder / f"{name}.csv", rows.assign(image=paths)[[column for column in rows if column in needed]])


KEPT = 2  # parts of an absolute path that tell what it is, and not on whose machine
HOMES = ("home", "Users")
# An absolute path in a sentence, up to the first sign that ends a word.
IN_TEXT = re.compile(r"(?<![\w.~/…-])(?:/[^\s/'\"`:,;()<>]+){2,}")


def study_text(study: Study) -> str:
    """YAML that `config.read_settings` reads back into an equal study."""
    return _dump(study.model_dump(mode="json"))


def shared_text(study: Study) -> str:
    """The same for others to read: of absolute paths the last two parts, more where these are those of another one."""
    content = study.model_dump(mode="json")
    texts: list[str] = []
    _mapped(content, texts.append)
    paths = [Path(text) for text in texts if Path(text).is_absolute()]
    return _dump(_mapped(content, lambda text: _last_parts(text, paths) if Path(text).is_absolute() else text))


def without_paths(sentence: str) -> str:
    """A sentence, such as an error, whose absolute paths are cut to their last two parts."""
    return IN_TEXT.sub(lambda found: _last_parts(found[0]), sentence)


def _dump(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def _mapped(value: Any, change: Callable[[str], Any]) -> Any:
    """Nested mappings and lists with every text among their values changed."""
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _last_parts(path: str, others: Sequence[Path] = ()) -> str:
    parts = Path(path).parts[1:]
    kept = KEPT
    while any(other.parts[-kept:] == parts[-kept:] and other != Path(path) for other in others) and kept < len(parts):
        kept += 1
    owner = 2 if parts and parts[0] in HOMES else 0  # of a home not the name of whose it is
    return "/".join(("…", *parts[max(owner, len(parts) - kept) :]))
