"""The tables of a study's folder, written from the jobs that ended."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from ..data.labelled_set import LabelledSet
from ..runs.files import whole_file, write_json
from .checks import Task
from .efficiency import curve_rows
from .folder import JobResult, ended_jobs
from .jobs import Job
from .layout import RESULT_COLUMNS, STUDY_FILE, job_folder, task_folder
from .resampling import Resampled, resampled
from .settings import Study
from .summary import summarise
from .text import study_text

JOB_COLUMNS = ("job", "data", "model", "method", "fraction", "seed")


def write_plan(folder: Path, study: Study, tasks: Sequence[Task], jobs: Sequence[Job]) -> None:
    """Write `study.yaml`, `jobs.csv` and `tasks/`, which stand before the first job starts."""
    with whole_file(folder / STUDY_FILE) as partial:
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
    with whole_file(path) as partial:
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
