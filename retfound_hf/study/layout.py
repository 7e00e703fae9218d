"""Names of a study's files and columns, and the readers of single files; `folder` says what lies where."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

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
