"""Folder of a study: results of jobs, predictions and learning curves, and how to read them."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import RetFoundError
from ..evaluation.aggregation import aggregate, units_of
from .config import Reporting, Study, accepted_metrics, read_settings

STUDY_FILE = "study.yaml"
RESULT_COLUMNS = (
    "job", "data", "model", "method", "fraction", "seed", "set", "metric", "value", "low", "high", "interval", "cases",
    "patients", "seconds", "status", "reason",
)  # fmt: skip
# `mean` over `seeds` jobs, with their standard deviation and the interval that they leave (of training), and the
# interval over patients of that mean (`low`, `high`, made by `interval`). On the rows of the reference model: its best
# competitor, the difference to it and the p values, as in comparisons.csv.
SUMMARY_COLUMNS = (
    "data", "set", "method", "fraction", "model", "metric", "seeds", "mean", "sd", "seeds_low", "seeds_high", "low",
    "high", "interval", "cases", "patients", "competitor", "difference", "difference_low", "difference_high",
    "p_value", "p_holm", "p_seeds",
)  # fmt: skip
# `difference` is `model` (the reference) minus `other`; `best` marks the best competitor. `p_value` is of `test`, over
# patients and seeds; it is empty, as are `low` and `high`, where no patients are drawn (ECE, `resamples: 0`). `p_holm`
# is corrected for all comparisons of the metric in the study; `p_seeds` is the paper's t-test over seeds.
COMPARISON_COLUMNS = (
    "data", "set", "method", "fraction", "metric", "model", "other", "best", "difference", "low", "high", "p_value",
    "test", "p_holm", "p_seeds",
)  # fmt: skip
TEXT_COLUMNS = (
    "id", "image", "patient_id", "eye", "job", "data", "model", "method", "set", "metric", "status", "reason",
    "interval", "competitor", "other", "test",
)  # fmt: skip
CURVE_COLUMNS = ("job", "data", "model", "method", "fraction", "seed", "epoch", "seconds", "metric", "value")


def read_predictions(folder: str | Path, job_id: str, evaluated: str) -> pd.DataFrame:
    """`predictions.csv` of a job on an evaluated set; ids, patients and classes are text."""
    path = predictions_file(folder, job_id, evaluated)
    classes = any(name.startswith("prob/") for name in pd.read_csv(path, nrows=0))
    return read_csv(path, ("label", "prediction") if classes else ())


def read_task(folder: str | Path, data: str) -> dict[str, Any]:
    """`task.json` of a data set."""
    return json.loads((task_folder(folder, data) / "task.json").read_text(encoding="utf-8"))


def read_images(folder: str | Path, data: str, evaluated: str) -> pd.DataFrame:
    """The images of an evaluated set with all that the data say of them."""
    task = read_task(folder, data)
    text = task["label_columns"] if task["problem_type"] == "single_label_classification" else ()
    return read_csv(task_folder(folder, data) / f"{evaluated}.csv", text)


def predictions_file(folder: str | Path, job_id: str, evaluated: str) -> Path:
    """Where a job's predictions of an evaluated set lie."""
    return job_folder(folder, job_id) / evaluated / "predictions.csv"


def job_folder(folder: str | Path, job_id: str) -> Path:
    """Where a job's results lie."""
    return Path(folder) / "jobs" / job_id


def task_folder(folder: str | Path, data: str) -> Path:
    """Where the lists of a data set's images lie."""
    return Path(folder) / "tasks" / data


def read_csv(path: Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """A table of the study; its names, and the columns `text`, stay as written ("NA" is a class, "007" is not 7)."""
    header = pd.read_csv(path, nrows=0).columns
    words = [name for name in header if name in (*TEXT_COLUMNS, *text)]
    numbers = {name: [""] for name in header if name not in words}
    return pd.read_csv(path, dtype=dict.fromkeys(words, str), keep_default_na=False, na_values=numbers)


@dataclass(frozen=True)
class JobResult:
    """A job that ended.

    Attributes:
        id, data, model, method, fraction, seed: as in `jobs.Job`.
        status: `finished` or `failed`.
        reason: why it failed, in one line.
        seconds: of the job, from reading the data to its last prediction.
        images, patients: number by split; patients are None where unknown.
        efficiency: `epochs`, `best_epoch`, `final` (validation metric of the weights that were kept), `epochs_to_95`,
            `seconds_to_95` (until validation first reached 95% of it); empty for a linear head.
        facts: `device`, `threads`, `cpu_seconds`, `parameters` (of the whole model), `versions`,
            `git_revision`.
    """

    id: str
    data: str
    model: str
    method: str
    fraction: float
    seed: int
    status: str
    reason: str = ""
    seconds: float | None = None
    images: Mapping[str, int] = field(default_factory=dict)
    patients: Mapping[str, int | None] = field(default_factory=dict)
    efficiency: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyResults:
    """A study folder, read.

    Attributes:
        folder: of the study.
        study: its settings.
        jobs: the jobs that ended, in the order of the study.
        planned: number of all jobs of the study.
        results, summary, comparisons, curves: the tables of the folder, as its module docstring names them.
    """

    folder: Path
    study: Study
    jobs: tuple[JobResult, ...]
    planned: int
    results: pd.DataFrame
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    curves: pd.DataFrame

    @property
    def finished(self) -> tuple[JobResult, ...]:
        """The jobs that came to a result."""
        return tuple(job for job in self.jobs if job.status == "finished")

    def metrics(self, data: str) -> tuple[str, ...]:
        """Those of the study's metrics that exist for a data set; the first is its main one."""
        accepted = accepted_metrics(self.task(data)["problem_type"])
        return tuple(name for name in self.study.metrics if name in accepted)

    def predictions(self, job_id: str, evaluated: str) -> pd.DataFrame:
        """`predictions.csv` of a job on `val`, `test` or an external set; ids, patients and classes are text."""
        return read_predictions(self.folder, job_id, evaluated)

    def task(self, data: str) -> dict[str, Any]:
        """`problem_type`, `class_names`, `label_columns`, and `images`, `patients` of every split and external set."""
        return read_task(self.folder, data)

    def images(self, data: str, evaluated: str) -> pd.DataFrame:
        """The images of an evaluated set with all that the data say of them; joined to predictions by `id`."""
        return read_images(self.folder, data, evaluated)

    def history(self, job_id: str) -> list[dict[str, Any]]:
        """The log of a job's training."""
        return json.loads((job_folder(self.folder, job_id) / "history.json").read_text(encoding="utf-8"))


def read_study(folder: str | Path) -> StudyResults:
    """Read the folder of a study that has ended, or of which some jobs have.

    Raises:
        RetFoundError: no study's folder, or none of its jobs has ended.
    """
    folder = Path(folder)
    for name in (STUDY_FILE, "jobs.csv", "results.csv"):
        if not (folder / name).is_file():
            raise RetFoundError(f"{folder} has no {name}; give the output folder of the command study")
    planned = list(
        read_csv(folder / "jobs.csv")[["job", "data", "model", "method"]].itertuples(index=False, name=None)
    )
    return StudyResults(
        folder=folder,
        study=read_settings(folder / STUDY_FILE),
        jobs=ended_jobs(folder, planned),
        planned=len(planned),
        results=read_csv(folder / "results.csv"),
        summary=read_csv(folder / "summary.csv"),
        comparisons=read_csv(folder / "comparisons.csv"),
        curves=read_csv(folder / "efficiency.csv"),
    )


def ended_jobs(folder: str | Path, planned: Iterable[tuple[str, str, str, str]]) -> tuple[JobResult, ...]:
    """Those of the jobs that finished or failed, in the order of `planned`.

    Args:
        planned: id and labels (data, model, method) of every job. The labels are those of the study now: `Set A` may
            have been `set-a`, which gives the same id, when the job ran.
    """
    read = ((read_job(folder, job_id), labels) for job_id, *labels in planned)
    return tuple(
        replace(found, data=data, model=model, method=method) for found, (data, model, method) in read if found
    )


def read_job(folder: str | Path, job_id: str) -> JobResult | None:
    """What became of a job; None for one that has not ended."""
    path = job_folder(folder, job_id) / "job.json"
    return JobResult(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


@dataclass(frozen=True)
class Outcomes:
    """What was to be predicted, and what was.

    Attributes:
        problem_type, labels, scores, class_names: as `evaluation.metrics.compute_metrics` takes them.
        patients: (cases,) names, None where unknown.
        first: (cases,) row of the predictions that a case starts with, for what else is known of it.
    """

    problem_type: str
    labels: np.ndarray
    scores: np.ndarray
    class_names: tuple[str, ...]
    patients: np.ndarray | None
    first: np.ndarray


def read_outcomes(
    predictions: pd.DataFrame, task: Mapping[str, Any], reporting: Reporting, eyes: Any = None
) -> Outcomes:
    """Labels and scores of a `predictions.csv`, joined to cases as `reporting` asks.

    Args:
        predictions, task: see `folder.StudyResults.predictions` and `task`.
        eyes: (images,) sides, for the level `eye`.
    """
    kind, names = task["problem_type"], tuple(task["class_names"])
    labels, scores = _arrays(predictions, kind, names)
    known = "patient_id" in predictions
    patients = predictions["patient_id"].where(predictions["patient_id"] != "").to_numpy(object) if known else None
    first = np.arange(len(predictions))
    if reporting.level != "image":
        units = units_of(reporting.level, patients, eyes)
        labels, scores = aggregate(kind, labels, scores, units, reporting.aggregation, reporting.label_conflicts)
        first = np.unique(units, return_index=True)[1]
        patients = patients[first]
    return Outcomes(kind, labels, scores, names, patients, first)


def _arrays(predictions: pd.DataFrame, kind: str, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    if kind == "regression":
        columns = [("label", "prediction")] if len(names) == 1 else [(f"label/{n}", f"prediction/{n}") for n in names]
        labels, scores = (predictions[[pair[side] for pair in columns]].to_numpy(np.float64) for side in (0, 1))
        return (labels[:, 0], scores[:, 0]) if len(names) == 1 else (labels, scores)
    scores = predictions[[f"prob/{name}" for name in names]].to_numpy(np.float64)
    if kind == "single_label_classification":
        return predictions["label"].map({name: index for index, name in enumerate(names)}).to_numpy(np.int64), scores
    shown = [set(text.split("|")) for text in predictions["label"]]
    return np.array([[name in found for name in names] for found in shown], np.int64), scores


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
