"""Tables of a study: summary over seeds, comparisons by resampling, text for the terminal."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from tqdm import tqdm

from ..data.labelled import LabelledSet
from ..errors import RetFoundError
from ..evaluation.bootstrap import evaluate, interval, is_skewed, passes
from ..evaluation.comparisons import compare_over_both, compare_seeds, holm, over_seeds
from ..evaluation.estimates import Estimate, patients_of
from ..evaluation.metrics import lower_is_better, plain_metrics, weighted_metrics
from ..evaluation.predictions import Predictions
from ..files import atomic_file, write_json
from .config import DataSet, Study
from .jobs import Job, Task
from .results import (
    COMPARISON_COLUMNS,
    RESULT_COLUMNS,
    STUDY_FILE,
    SUMMARY_COLUMNS,
    JobResult,
    Outcomes,
    curve_rows,
    ended_jobs,
    job_folder,
    predictions_file,
    read_images,
    read_outcomes,
    read_predictions,
    read_task,
    task_folder,
)


@dataclass(frozen=True)
class Resampled:
    """A metric of one job, on the evaluated set and on sets like it; of several jobs, their mean.

    Attributes:
        value: NaN where undefined.
        drawn: (B,) on bootstrap samples of the patients, the same samples for every job on the set; (0,) for a metric
            that has no interval.
        left_out, strata: (groups,) without each group of patients, and the group's stratum.
        patients, cases: their numbers.
    """

    value: float
    drawn: np.ndarray
    left_out: np.ndarray
    strata: np.ndarray
    patients: int
    cases: int

    def estimate(self, metric: str) -> Estimate:
        """The value with its interval over patients, as `bootstrap.metric_intervals` finds that of the metric."""
        value = None if np.isnan(self.value) else self.value
        if not len(self.drawn):
            return Estimate(value, None, None, self.patients, "no interval")
        return interval(value, self.drawn, self.patients, (self.left_out, self.strata), is_skewed(metric))


def mean_of(jobs: Sequence[Resampled]) -> Resampled:
    """The mean of a metric over jobs that differ in their seed; undefined where one of them is."""
    means = {name: np.mean([getattr(job, name) for job in jobs], axis=0) for name in ("value", "drawn", "left_out")}
    return dataclasses.replace(jobs[0], **{**means, "value": float(means["value"])})


def resampled(folder: Path, study: Study, job_id: str, data: str, evaluated: str) -> dict[str, Resampled]:
    """Every metric of the study, and its values per class, by name; computed now or read from `statistics/`."""
    reporting = study.reporting
    facts = (study.metrics, reporting.level, reporting.aggregation, reporting.label_conflicts, reporting.resamples)
    content = predictions_file(folder, job_id, evaluated).read_bytes()
    digest = hashlib.blake2b(repr(facts).encode() + content, digest_size=8).hexdigest()
    path = folder / "statistics" / job_id / f"{evaluated}-{digest}.npz"
    if not path.is_file():
        predictions = read_predictions(folder, job_id, evaluated)
        eyes = read_images(folder, data, evaluated).set_index("id") if reporting.level == "eye" else None
        sides = None if eyes is None else eyes.loc[predictions["id"], "eye"].to_numpy(object)
        outcomes = read_outcomes(predictions, read_task(folder, data), reporting, sides)
        _save(path, resample(outcomes, study.metrics, reporting.resamples))
    return _load(path)


def resample(outcomes: Outcomes, metrics: Sequence[str], resamples: int, seed: int = 0) -> dict[str, Resampled]:
    """The metrics `metrics`, also per class, on `resamples` bootstrap samples of patients, drawn as in `bootstrap`."""
    predictions = Predictions(
        None, outcomes.scores, outcomes.labels, outcomes.class_names, outcomes.problem_type, outcomes.patients
    )
    rows, empty = predictions.rows, np.zeros(0)
    wanted = [name for name in predictions.metric_names if name.split("/", 1)[0] in metrics]
    values = plain_metrics(rows, wanted)
    found = {
        name: Resampled(np.nan if value is None else value, empty, empty, empty, 1, len(rows))
        for name, value in values.items()
    }
    try:
        count = patients_of(outcomes.patients, len(rows)).count
    except RetFoundError:  # a single patient
        return found
    found = {name: dataclasses.replace(one, patients=count) for name, one in found.items()}
    for names, patients in passes(rows, wanted, outcomes.patients) if resamples else ():
        statistic = partial(weighted_metrics, rows, names)
        drawn = evaluate(statistic, patients.draws(resamples, seed))
        strata, blocks = patients.left_out()
        left_out = evaluate(statistic, blocks)
        for name in names:
            found[name] = dataclasses.replace(found[name], strata=strata, drawn=drawn[name], left_out=left_out[name])
    return found


def _save(path: Path, table: dict[str, Resampled]) -> None:
    arrays = {f"{row}-{name}": value for row, one in enumerate(table.values()) for name, value in vars(one).items()}
    with atomic_file(path) as partial:
        np.savez(partial, names=np.array(list(table), dtype=str), **arrays)


def _load(path: Path) -> dict[str, Resampled]:
    fields = [field.name for field in dataclasses.fields(Resampled)]
    with np.load(path) as stored:
        return {
            str(name): Resampled(*(_plain(stored[f"{index}-{field}"]) for field in fields))
            for index, name in enumerate(stored["names"])
        }


def _plain(array: np.ndarray) -> np.ndarray | float:
    return array if array.ndim else array.item()


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


JOB_COLUMNS = ("job", "data", "model", "method", "fraction", "seed")


def write_plan(folder: Path, study: Study, tasks: Sequence[Task], jobs: Sequence[Job]) -> None:
    """Write `study.yaml`, `jobs.csv` and `tasks/`, which stand before the first job starts."""
    with atomic_file(folder / STUDY_FILE) as partial:
        partial.write_text(study_text(study), encoding="utf-8")
    rows = [(job.id, job.data, job.model, job.method, job.fraction, job.seed) for job in jobs]
    write_table(folder / "jobs.csv", pd.DataFrame(rows, columns=list(JOB_COLUMNS)))
    for task in tasks:
        _write_task(task_folder(folder, task.data.name), task)


def write_results(folder: Path, study: Study, jobs: Sequence[Job]) -> tuple[JobResult, ...]:
    """Write the tables of all jobs that have ended, whichever part or machine ran them."""
    ended = ended_jobs(folder, [job.labelled for job in jobs])
    finished = [job for job in ended if job.status == "finished"]
    table = {
        (job.id, evaluated): resampled(folder, study, job.id, job.data, evaluated)
        for job in tqdm(finished, desc="statistics", unit="job", disable=len(finished) < 2, leave=False)
        for evaluated in study.data_set(job.data).evaluated
    }
    rows = [row for job in ended for row in _result_rows(study, job, table)]
    write_table(folder / "results.csv", pd.DataFrame(rows, columns=list(RESULT_COLUMNS)))
    histories = [json.loads((job_folder(folder, job.id) / "history.json").read_text()) for job in finished]
    write_table(folder / "efficiency.csv", curve_rows(finished, histories))
    summary, comparisons = summarise(study, finished, table)
    write_table(folder / "summary.csv", summary)
    write_table(folder / "comparisons.csv", comparisons)
    return ended


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV file, whole or not at all, with the digits that tell any two numbers apart."""
    with atomic_file(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")


def _result_rows(
    study: Study, job: JobResult, table: Mapping[tuple[str, str], Mapping[str, Resampled]]
) -> Iterator[dict[str, Any]]:
    what = {"job": job.id, **{name: getattr(job, name) for name in JOB_COLUMNS[1:]}}
    what |= {"seconds": job.seconds, "status": job.status, "reason": job.reason}
    if job.status != "finished":
        yield what
        return
    for evaluated in study.data_set(job.data).evaluated:
        for name, found in table[job.id, evaluated].items():
            estimate = found.estimate(name)
            yield {
                **what, "set": evaluated, "metric": name, "value": estimate.value, "low": estimate.low,
                "high": estimate.high, "interval": estimate.method if estimate.interval else "",
                "cases": found.cases, "patients": found.patients,
            }  # fmt: skip


def _write_task(folder: Path, task: Task) -> None:
    labelled = task.labelled
    parts = {"train": labelled.rows("train")} | {name: found.rows(split) for name, found, split in task.evaluated()}
    write_json(
        folder / "task.json",
        {
            "problem_type": labelled.problem_type,
            "class_names": list(labelled.class_names),
            "label_columns": list(labelled.label_columns),
            "modality": task.data.modality,
            "images": {name: len(rows) for name, rows in parts.items()},
            "patients": {name: _patients(rows) for name, rows in parts.items()},
        },
    )
    for name, found, split in task.evaluated():
        write_table(folder / f"{name}.csv", _image_table(found, split))


def _image_table(labelled: LabelledSet, split: str) -> pd.DataFrame:
    rows = labelled.rows(split)
    # An image that lies in a parquet file has no path of its own.
    return rows.assign(image=[image if isinstance(image, str) else "" for image in rows["image"]])


def _patients(rows: pd.DataFrame) -> int | None:
    return int(rows["patient_id"].nunique()) if rows["patient_id"].notna().all() else None


KEPT = 2  # parts of an absolute path that tell what it is, and not on whose machine
HOMES = ("home", "Users")
# An absolute path in a sentence, up to the first sign that ends a word.
IN_TEXT = re.compile(r"(?<![\w.~/…-])(?:/[^\s/'\"`:,;()<>]+){2,}")


def study_text(study: Study) -> str:
    """YAML that `reading.read_settings` reads back into an equal study."""
    return _dump(_content(study))


def shared_text(study: Study) -> str:
    """The same for others to read: of absolute paths the last two parts, more where these are those of another one."""
    content = _content(study)
    paths = [Path(text) for text in _texts(content) if Path(text).is_absolute()]
    return _dump(_mapped(content, lambda text: _last_parts(text, paths) if Path(text).is_absolute() else text))


def without_paths(sentence: str) -> str:
    """A sentence, such as an error, whose absolute paths are cut to their last two parts."""
    return IN_TEXT.sub(lambda found: _last_parts(found[0]), sentence)


def _content(study: Study) -> dict[str, Any]:
    return {
        "name": study.name,
        "models": {model.label: {model.option: dict(model.starts), **model.finetune} for model in study.models},
        "methods": {method.label: {"method": method.method, **method.finetune} for method in study.methods},
        "data": {data.name: _data_set(data) for data in study.data},
        "fractions": list(study.fractions),
        "seeds": list(study.seeds),
        "metrics": list(study.metrics),
        "finetune": dict(study.finetune),
        "keep_models": study.keep_models,
        "reporting": {name: list(value) if isinstance(value, tuple) else value
                      for name, value in vars(study.reporting).items()},
    }  # fmt: skip


def _dump(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def _data_set(data: DataSet) -> dict[str, Any]:
    known = {"data": data.data, "modality": data.modality, "cohort": data.cohort, **data.finetune}
    if data.external:
        known["external"] = {one.name: {"data": one.data, "split": one.split, **one.options} for one in data.external}
    return {name: value for name, value in known.items() if value is not None}


def _texts(value: Any) -> Iterator[str]:
    """All text among the values of nested mappings and lists."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
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
