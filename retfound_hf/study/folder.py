"""The folder of a study: what lies where, and how to read it.

    STUDY/
      study.yaml         the study as it was asked, with absolute paths; a study file itself
      jobs.csv           every job of the study: job, data, model, method, fraction, seed
      run.json           arguments, versions, git revision, hardware, of the last call
      results.csv        one row per job, evaluated set and metric; one per failed job (`RESULT_COLUMNS`)
      summary.csv        one row per cell (data set, evaluated set, method, fraction), model and metric
                         (`SUMMARY_COLUMNS`)
      comparisons.csv    one row per cell, metric and model that the reference is tested against
                         (`COMPARISON_COLUMNS`)
      efficiency.csv     validation metric by epoch and seconds of every job that has epochs (`CURVE_COLUMNS`)
      tasks/<data>/
        task.json        problem type, classes, patients and images of every split and external set
        <set>.csv        the images of an evaluated set: id, image (path), label columns, patient_id, eye, metadata
      jobs/<id>/         a job that ended; it appears whole or not at all
        job.json         what it was and how it went (`JobResult`)
        <set>/predictions.csv, <set>/metrics.json    for `val`, `test` and every external set
        history.json     the log of training, as the command `finetune` writes it
        finetune.yaml    the options with which `retfound finetune` repeats the job
        log.txt          what it printed
        model/           the trained weights, with `keep_models`
      statistics/        metrics of jobs on resampled patients; may be deleted at any time
      features/          feature vectors for linear heads, by what they depend on; may be deleted at any time

`<set>` is `val`, `test` or the name of an external set. Readers go through `read_study`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from ..runs.errors import RetFoundError
from .layout import (
    COMPARISON_COLUMNS,
    CURVE_COLUMNS,
    RESULT_COLUMNS,
    STUDY_FILE,
    SUMMARY_COLUMNS,
    job_folder,
    read_csv,
    read_images,
    read_predictions,
    read_task,
)
from .reading import accepted_metrics, read_settings
from .settings import Study

__all__ = ["COMPARISON_COLUMNS", "CURVE_COLUMNS", "RESULT_COLUMNS", "SUMMARY_COLUMNS", "JobResult", "StudyResults",
           "read_study"]  # fmt: skip


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
