"""Report of an evaluation: `metrics.json`, `predictions.csv`, tables, plots and the table for the terminal."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import BadArgumentError, BadModelError, nearest, require_range
from ..files import atomic_file, write_json
from ..vocabulary import POINTS_FILE, PROBLEM_TYPES, SINGLE_LABEL
from .bootstrap import MIN_DEFINED, RESAMPLES, Estimate
from .metrics import compute_metrics, metric_title
from .predictions import Aggregate, Conflicts, Level, Predictions
from .subgroups import UNKNOWN, column_groups, estimate_cells
from .thresholds import OperatingPoint

logger = logging.getLogger(__name__)
INTERVAL = "_ci95"


def format_table(metrics: dict[str, Any], class_names: Sequence[str] | None = None) -> str:
    """The overall metrics, one per line, then one line per class.

    Args:
        metrics: flat as in `metrics.json`: `name`, `name/<class>`, and `name_ci95` with `[low, high]`.
        class_names: order of the classes; as they come in `metrics` when None.

    Returns:
        Lines without a final line break: 3 decimals, `undefined` for None, an interval in brackets after its value.
    """
    overall = [name for name in metrics if "/" not in name and not name.endswith(INTERVAL)]
    lines = _aligned([[name, _cell(metrics, name)] for name in overall])
    # A class name may hold a slash itself: only the first one separates.
    split = [name.split("/", 1) for name in metrics if "/" in name and not name.endswith(INTERVAL)]
    columns = list(dict.fromkeys(column for column, _ in split))
    found = list(dict.fromkeys(label for _, label in split))
    rows = [name for name in class_names if name in found] if class_names is not None else found
    if rows:
        heading = ["class", *map(metric_title, columns)]
        cells = [[row, *(_cell(metrics, f"{column}/{row}") for column in columns)] for row in rows]
        lines += ["", *_aligned([heading, *cells])]
    return "\n".join(lines)


def _cell(metrics: dict[str, Any], name: str) -> str:
    if name not in metrics:
        return ""
    interval = metrics.get(name + INTERVAL)
    return _number(metrics[name]) + (f" [{_number(interval[0])}, {_number(interval[1])}]" if interval else "")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Names to the left, numbers to the right, so that the decimal points stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]))
    return lines


IDENTIFYING = ("patient_id", "id", "image")  # a group of these is one patient or one image, by name
MOST_ALONE = 0.5  # share of patients with a group of their own: above it, a column tells who they are


@dataclass
class ReportArguments:
    confidence_intervals: bool = field(
        default=False, metadata={"help": "95%% intervals of all metrics, by a bootstrap over patients"}
    )
    resamples: int = field(default=RESAMPLES, metadata={"help": "resamples of that bootstrap; its seed is 0"})
    level: Level = field(
        default="image", metadata={"help": "unit of the metrics; eyes and patients get one score from their images"}
    )
    aggregate: Aggregate = field(
        default="mean", metadata={"help": "score of an eye or patient: mean of its images' scores, or the highest"}
    )
    label_conflicts: Conflicts = field(
        default="error",
        metadata={"help": "images of an eye or patient with different labels: stop, or take the highest grade"},
    )
    subgroup_columns: list[str] | None = field(
        default=None, metadata={"help": "metrics per group of these columns; bands of numbers as in age:50,65"}
    )

    def __post_init__(self) -> None:
        require_range("resamples", self.resamples, MIN_DEFINED)
        for name in self.subgroups:  # a mistyped band shows here too, before anything is computed
            if name in IDENTIFYING:
                raise BadArgumentError(
                    f"`subgroup_columns={name}`: its groups are single patients or images, whose names would stand in "
                    "subgroups.csv and the card; give a column that many patients share, such as sex or camera",
                    field="subgroup_columns", value=name,
                )  # fmt: skip

    @property
    def subgroups(self) -> dict[str, list[float] | None]:
        """Edges of the bands of each subgroup column, None where none are given."""
        return dict(_column_and_edges(text) for text in self.subgroup_columns or ())

    def check_columns(self, table: pd.DataFrame, data: str) -> None:
        """Raise BadArgumentError unless a table has the subgroup columns, and groups of patients in them.

        Args:
            table: of a labelled set, with `id` and `patient_id`.
            data: the set, for the message.
        """
        names = [str(column) for column in table if column not in ("id", "image")]
        for name, edges in self.subgroups.items():
            field = {"field": "subgroup_columns", "value": name}
            if name not in table:
                raise BadArgumentError(
                    f"`subgroup_columns={name}`: {data} has no such column; it has {', '.join(names)}"
                    f"{nearest(name, names)}", **field, accepted=names,
                )  # fmt: skip
            alone, patients = _patients_alone(table, column_groups(table[name], edges))
            if alone > MOST_ALONE * patients:
                raise BadArgumentError(
                    f"`subgroup_columns={name}`: {alone} of the {patients} patients of {data} have a group of their "
                    "own, which tells who they are; give a column that many patients share, or bands as in age:50,65",
                    **field,
                )  # fmt: skip

    def at_level(self, predictions: Predictions) -> Predictions:
        """Predictions of the units that the report is about."""
        return predictions.at_level(self.level, self.aggregate, self.label_conflicts)


def _patients_alone(table: pd.DataFrame, groups: np.ndarray) -> tuple[int, int]:
    """Number of patients who share none of their groups with another, and number of all; the unknown group is shared.

    An image without a patient counts as one.
    """
    patients = table["patient_id"].where(table["patient_id"].notna(), table["id"])
    found = pd.DataFrame({"patient": patients.to_numpy(), "group": groups})
    sizes = found.groupby("group")["patient"].transform("nunique")
    shared = ((sizes > 1) | (found["group"] == UNKNOWN)).groupby(found["patient"]).any()
    return int((~shared).sum()), len(shared)


def _column_and_edges(text: str) -> tuple[str, list[float] | None]:
    name, colon, edges = text.partition(":")
    try:
        return name, [float(edge) for edge in edges.split(",")] if colon else None
    except ValueError as error:
        message = f"`subgroup_columns={text}`: edges of bands are numbers, as in age:50,65"
        raise BadArgumentError(message, field="subgroup_columns", value=text) from error


def write_points(folder: Path, points: Sequence[OperatingPoint], report: ReportArguments, images: int) -> None:
    """Write thresholds with the level that they hold for."""
    facts = {"chosen_on": "validation split", "images": images, "level": report.level, "aggregate": report.aggregate}
    write_json(folder / POINTS_FILE, {**facts, "points": [dataclasses.asdict(point) for point in points]})


def read_points(folder: str | Path, class_names: tuple[str, ...], report: ReportArguments) -> list[OperatingPoint]:
    """The thresholds of a model folder or Hub id; none, with a line in the log, where they are of another level."""
    path = Path(folder) / POINTS_FILE if Path(folder).exists() else _from_hub(str(folder))
    if path is None or not path.is_file():
        return []
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        points = [OperatingPoint(**point) for point in stored["points"]]
        level, how = stored["level"], stored["aggregate"]
    except (ValueError, TypeError, KeyError) as error:
        raise BadModelError(f"{path} is damaged ({error}); remove it, or fine-tune again", model=folder) from error
    if level != report.level or (level != "image" and how != report.aggregate):
        logger.warning(
            "the thresholds of %s are left out: they were chosen for the level %s (%s), and this report is about the "
            "level %s (%s)", path, level, how, report.level, report.aggregate,
        )  # fmt: skip
        return []
    return [point for point in points if point.label in class_names]


def _from_hub(repo_id: str) -> Path | None:
    """The file of a repository, None if it has none or, without a network, the cache has none of it."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, POINTS_FILE))
    except (OSError, ValueError):
        return None


def write_report(
    folder: str | Path,
    predictions: Predictions,
    arguments: ReportArguments | None = None,
    points: Sequence[OperatingPoint] = (),
    plots: bool = True,
) -> dict[str, Any]:
    """Write the three kinds of files, the tables that `arguments` ask for, and return the metrics.

    `predictions.csv` is about images always; metrics, plots and tables are about the units of `arguments.level`,
    whose own predictions stand in `predictions_<level>.csv`.

    Args:
        folder: made where it is missing.
        predictions: of images, with the columns of subgroups.
        arguments: level, intervals and subgroups; by default none of them.
        points: thresholds chosen on other images; what they reach here goes to `operating_points.csv`.
        plots: they take longer than a small model does.
    """
    folder, arguments = Path(folder), arguments or ReportArguments()
    extra = list(arguments.subgroups)
    tables = {"predictions": predictions.table(extra)}
    predictions = arguments.at_level(predictions)
    if arguments.level != "image":
        tables[f"predictions_{arguments.level}"] = predictions.table(extra)
    metrics, estimates = measure(predictions, arguments)
    if estimates:
        tables["intervals"] = intervals_table(estimates)
        if PROBLEM_TYPES[predictions.problem_type].is_classification:
            tables["calibration"] = predictions.calibration()
    if points:
        tables["operating_points"] = predictions.operating_points(points)
    if arguments.subgroups:
        tables["subgroups"] = predictions.subgroups(arguments.subgroups, arguments.resamples)
    for name, table in tables.items():
        with atomic_file(folder / f"{name}.csv") as partial:
            table.to_csv(partial, index=False, float_format="%.9g")
    if plots:
        from .plots import write_plots  # matplotlib takes a second

        write_plots(folder / "plots", predictions)
    write_json(folder / "metrics.json", metrics)
    return metrics


def measure(predictions: Predictions, arguments: ReportArguments) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """Metrics as `metrics.json` holds them, and the estimates with intervals if `arguments` ask for them."""
    if not arguments.confidence_intervals:
        return dict(predictions.metrics()), {}
    estimates = predictions.intervals(arguments.resamples)
    metrics: dict[str, Any] = {name: found.value for name, found in estimates.items()}
    metrics |= {f"{name}{INTERVAL}": found.interval for name, found in estimates.items() if found.interval}
    return metrics, estimates


def intervals_table(estimates: dict[str, Estimate]) -> pd.DataFrame:
    """`metric`, `value`, `low`, `high`, `n` (patients), `undefined` (share of resamples), `method`."""
    return pd.DataFrame(
        [{"metric": name, **estimate_cells(found), "method": found.method} for name, found in estimates.items()]
    )


def load_metric(problem_type: str, class_names: Sequence[str]) -> Any:
    """`METRICS` as an `evaluate.Metric`, which collects batches and gathers them across processes.

    Args:
        problem_type: key of `PROBLEM_TYPES`.
        class_names: names of the C classes or T targets.

    Returns:
        A metric whose `compute(predictions=, references=)` gives what `compute_metrics` gives for scores and labels.
    """
    import datasets
    import evaluate

    several = datasets.Sequence(datasets.Value("float64"))
    references = datasets.Value("int64") if problem_type == SINGLE_LABEL else several

    class RetFoundMetric(evaluate.Metric):
        def _info(self) -> evaluate.MetricInfo:
            features = datasets.Features({"predictions": several, "references": references})
            return evaluate.MetricInfo(description=__doc__, citation="", features=features)

        def _compute(self, predictions: Any, references: Any) -> dict[str, float | None]:
            return compute_metrics(problem_type, np.asarray(references), np.asarray(predictions), class_names)

    return RetFoundMetric()
