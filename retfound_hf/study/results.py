"""Folder of a study: results of its jobs, predictions, learning curves and tables, and how to read them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..errors import BadDataError, OutputError, one_line
from ..evaluation.metrics import metrics_for
from ..evaluation.predictions import Predictions
from ..evaluation.thresholds import finding_of
from ..files import guard, read_json, read_table, unguard, write_json
from ..vocabulary import SINGLE_LABEL
from .config import Reporting, Study, read_settings

if TYPE_CHECKING:
    from .jobs import Job

STUDY_FILE = "study.yaml"
JOB_COLUMNS = ("job", "data", "model", "method", "fraction", "seed")
TEXT_COLUMNS = (
    "id", "image", "patient_id", "eye", "job", "data", "model", "method", "set", "metric", "status", "reason",
    "interval", "competitor", "other", "test",
)  # fmt: skip


def job_folder(folder: str | Path, job_id: str) -> Path:
    """Folder of a job's results."""
    return Path(folder) / "jobs" / job_id


def predictions_file(folder: str | Path, job_id: str, evaluated: str) -> Path:
    """File of a job's predictions of an evaluated set."""
    return job_folder(folder, job_id) / evaluated / "predictions.csv"


def read_csv(path: Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """A table of the study; its names, and the columns `text`, stay as written ("NA" is a class, "007" is not 7)."""
    header = [guard(name) for name in read_table(path, nrows=0)]
    words = [name for name in header if unguard(name) in (*TEXT_COLUMNS, *text)]
    numbers = {name: [""] for name in header if name not in words}
    return read_table(path, dtype=dict.fromkeys(words, str), na_values=numbers)


def read_task(folder: str | Path, data: str) -> dict[str, Any]:
    """`task.json` of a data set."""
    return read_json(Path(folder, "tasks", data, "task.json"))


def read_images(folder: str | Path, data: str, evaluated: str) -> pd.DataFrame:
    """The images of an evaluated set with all that the data say of them."""
    task = read_task(folder, data)
    text = task["label_columns"] if task["problem_type"] == SINGLE_LABEL else ()
    return read_csv(Path(folder, "tasks", data, f"{evaluated}.csv"), text)


def read_predictions(folder: str | Path, job_id: str, data: str, evaluated: str) -> Predictions:
    """Predictions of a job for a set, with all that the data say of its images as `columns`."""
    path = predictions_file(folder, job_id, evaluated)
    task = read_task(folder, data)
    predictions, order = Predictions.read_csv(path, task["problem_type"]), task.get("class_order")
    images = read_images(folder, data, evaluated).set_index("id").loc[predictions.ids].reset_index()
    eyes = images["eye"].where(images["eye"] != "", None) if "eye" in images else None
    return replace(predictions, eyes=eyes, columns=images, class_order=order and tuple(order))


def read_cases(folder: str | Path, job_id: str, data: str, evaluated: str, reporting: Reporting) -> Predictions:
    """The same by case, as `reporting` asks; `columns` are those of the first image of each case."""
    predictions, level = read_predictions(folder, job_id, data, evaluated), reporting.level
    cases = predictions.at_level(level, reporting.aggregation, reporting.label_conflicts)
    keys = {"image": ["id"], "eye": ["patient_id", "eye"], "patient": ["patient_id"]}[level]
    return replace(cases, columns=predictions.columns.drop_duplicates(keys))


def read_history(folder: str | Path, job_id: str) -> list[dict[str, Any]]:
    """The log of a job's training."""
    return read_json(job_folder(folder, job_id) / "history.json", list)


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
        error: what a failed job of this call raised; it is in no file.
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
    error: BaseException | None = field(default=None, compare=False)

    @classmethod
    def of(cls, job: "Job", status: str, **facts: Any) -> "JobResult":
        """Result of a job."""
        labels = {name: getattr(job, name) for name in ("id", *JOB_COLUMNS[1:])}
        return cls(**labels, status=status, **facts)

    def write(self, folder: Path) -> None:
        """Write `job.json`."""
        write_json(folder / "job.json", {name: value for name, value in asdict(self).items() if name != "error"})

    @property
    def columns(self) -> dict[str, Any]:
        """Columns of the tables that describe the job in every row."""
        return {"job": self.id, **{name: getattr(self, name) for name in JOB_COLUMNS[1:]}}


@dataclass(frozen=True)
class StudyResults:
    """A study folder, read.

    Attributes:
        folder: of the study.
        study: its settings.
        jobs: the jobs that ended, in the order of the study.
        planned: number of all jobs of the study.
        results, summary, comparisons, curves: the tables of the folder; curves are efficiency.csv.
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
        """See `reported_metrics`; the first is the main one."""
        return reported_metrics(self.study, self.task(data))

    def predictions(self, job: JobResult, evaluated: str) -> Predictions:
        """Predictions of a job for `val`, `test` or an external set, by image."""
        return read_predictions(self.folder, job.id, job.data, evaluated)

    def cases(self, job: JobResult, evaluated: str) -> Predictions:
        """The same by case: image, eye or patient."""
        return read_cases(self.folder, job.id, job.data, evaluated, self.study.reporting)

    def task(self, data: str) -> dict[str, Any]:
        """`problem_type`, `class_names`, `label_columns`, and `images`, `patients` of every split and external set."""
        return read_task(self.folder, data)

    def finding(self, data: str) -> str | None:
        """Of two exclusive classes the one that reports are about; None for all other tasks."""
        return _finding(self.task(data))


def reported_metrics(study: Study, task: Mapping[str, Any]) -> tuple[str, ...]:
    """Those of a study's metrics that exist for a data set.

    Of two exclusive classes a mean over both, such as `auprc`, becomes that of the finding, `auprc/<finding>`.
    """
    accepted, finding = {metric.name: metric for metric in metrics_for(task["problem_type"])}, _finding(task)
    own = {name for name, metric in accepted.items() if metric.per_class and finding and name != "auroc"}
    return tuple(f"{name}/{finding}" if name in own else name for name in study.metrics if name in accepted)


def _finding(task: Mapping[str, Any]) -> str | None:
    return finding_of(task["problem_type"], task["class_names"], task.get("class_order"))


def read_study(folder: str | Path) -> StudyResults:
    """Read the folder of a study that has ended, or of which some jobs have.

    Raises:
        OutputError: no study's folder, or none of its jobs has ended.
    """
    folder = Path(folder)
    for name in (STUDY_FILE, "jobs.csv", "results.csv"):
        if not (folder / name).is_file():
            raise OutputError(f"{folder} has no {name}; give the output folder of the command study", path=folder)
    tables = {name: read_csv(folder / f"{name}.csv") for name in ("results", "summary", "comparisons", "efficiency")}
    if "paper_low" not in tables["summary"]:
        tables["summary"] = with_t_over_seeds(tables["summary"])
    planned = read_csv(folder / "jobs.csv")[list(JOB_COLUMNS[:4])].itertuples(index=False, name=None)
    planned = list(planned)
    jobs = ended_jobs(folder, planned)
    return StudyResults(folder, read_settings(folder / STUDY_FILE), jobs, len(planned), *tables.values())


def with_t_over_seeds(summary: pd.DataFrame) -> pd.DataFrame:
    """A summary with Student's interval over seeds, of one that was written with the paper's alone."""
    from scipy.stats import t

    summary = summary.rename(columns={"seeds_low": "paper_low", "seeds_high": "paper_high"})
    half = t.ppf(0.975, summary["seeds"] - 1) * summary["sd"] / summary["seeds"] ** 0.5
    return summary.assign(seeds_low=summary["mean"] - half, seeds_high=summary["mean"] + half)


def ended_jobs(folder: str | Path, planned: Iterable[tuple[str, ...]]) -> tuple[JobResult, ...]:
    """Those of the jobs that finished or failed, in the order of `planned`.

    Args:
        folder: of the study.
        planned: id and labels (data, model, method) of every job. The labels are those of the study now: `Set A` may
            have been `set-a`, which gives the same id, when the job ran.
    """
    read = ((read_job(folder, job_id), labels) for job_id, *labels in planned)
    return tuple(
        replace(found, data=data, model=model, method=method) for found, (data, model, method) in read if found
    )


def read_job(folder: str | Path, job_id: str) -> JobResult | None:
    """Result of a job; None for one that has not ended."""
    path = job_folder(folder, job_id) / "job.json"
    if not path.is_file():
        return None
    try:
        return JobResult(**read_json(path))
    except TypeError as error:
        message = f"{path} is not the record of a job ({one_line(error)}); remove it, and run the study again"
        raise BadDataError(message, source=path) from error


SHARE = 0.95
CURVE = "auroc"  # of the validation split after every epoch


def validation_curve(history: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Columns `epoch`, `seconds` since training began, `value`: one row per evaluation on the validation split.

    Empty for a linear head, whose log has no epochs, and where the metric was undefined.
    """
    key = f"eval_{CURVE}"
    rows = [(entry["epoch"], entry.get("seconds"), entry[key]) for entry in history if key in entry]
    return pd.DataFrame(rows, columns=["epoch", "seconds", "value"]).drop_duplicates("epoch", ignore_index=True)


def curve_points(folder: str | Path, job: JobResult) -> list[dict[str, Any]]:
    """The rows of efficiency.csv of a finished job."""
    curve = validation_curve(read_history(folder, job.id))[["epoch", "seconds", "value"]]
    return [{**job.columns, "metric": CURVE, **point} for point in curve.to_dict("records")]


def adaptation(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Values of `JobResult.efficiency`; empty without a curve.

    `final` is the best validation value, which is that of the weights that are kept.
    """
    curve = validation_curve(history)
    if curve.empty:
        return {}
    best = curve.loc[curve["value"].idxmax()]
    reached = curve[curve["value"] >= SHARE * best["value"]].iloc[0]
    return {
        "metric": CURVE,
        "epochs": float(curve["epoch"].max()),
        "best_epoch": float(best["epoch"]),
        "final": float(best["value"]),
        "epochs_to_95": float(reached["epoch"]),
        "seconds_to_95": None if reached["seconds"] is None else float(reached["seconds"]),
    }
