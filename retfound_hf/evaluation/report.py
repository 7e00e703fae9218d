"""Report of an evaluation: `metrics.json`, `predictions.csv`, tables, plots and the table for the terminal."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..errors import RetFoundError, nearest
from ..files import atomic_file, write_json
from .aggregation import aggregate, units_of
from .bootstrap import MIN_DEFINED, RESAMPLES, metric_intervals
from .calibration import calibration_line, confidence_and_correctness, expected_calibration_error
from .estimates import Estimate
from .metrics import compute_metrics, metric_title
from .plots import plot_classification, plot_regression
from .subgroups import UNKNOWN, column_groups, subgroup_metrics
from .thresholds import MEASURES, OperatingPoint, measure_threshold
from .validation import check_classification

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
    level: Literal["image", "eye", "patient"] = field(
        default="image", metadata={"help": "unit of the metrics; eyes and patients get one score from their images"}
    )
    aggregate: Literal["mean", "max"] = field(
        default="mean", metadata={"help": "score of an eye or patient: mean of its images' scores, or the highest"}
    )
    label_conflicts: Literal["error", "max"] = field(
        default="error",
        metadata={"help": "images of an eye or patient with different labels: stop, or take the highest grade"},
    )
    subgroup_columns: list[str] | None = field(
        default=None, metadata={"help": "metrics per group of these columns; bands of numbers as in age:50,65"}
    )

    def __post_init__(self) -> None:
        if self.resamples < MIN_DEFINED:
            raise RetFoundError(f"--resamples {self.resamples} is too few for a 95% interval; at least {MIN_DEFINED}")
        for name in self.subgroups:  # a mistyped band shows here too, before anything is computed
            if name in IDENTIFYING:
                raise RetFoundError(
                    f"--subgroup_columns {name}: its groups are single patients or images, whose names would stand in "
                    "subgroups.csv and the card; give a column that many patients share, such as sex or camera"
                )

    @property
    def subgroups(self) -> dict[str, list[float] | None]:
        """Edges of the bands of each subgroup column, None where none are given."""
        return dict(_column_and_edges(text) for text in self.subgroup_columns or ())

    def check_columns(self, table: pd.DataFrame, data: str) -> None:
        """Raise unless the table of a labelled set has the subgroup columns, and groups of patients in them."""
        for name, edges in self.subgroups.items():
            if name not in table:
                names = [str(column) for column in table]
                known = ", ".join(column for column in names if column not in ("id", "image"))
                raise RetFoundError(
                    f"--subgroup_columns {name}: {data} has no such column; it has {known}{nearest(name, names)}"
                )
            alone, patients = _patients_alone(table, column_groups(table[name], edges))
            if alone > MOST_ALONE * patients:
                raise RetFoundError(
                    f"--subgroup_columns {name}: {alone} of the {patients} patients of {data} have a group of their "
                    "own, which tells who they are; give a column that many patients share, or bands as in age:50,65"
                )


def _patients_alone(table: pd.DataFrame, groups: np.ndarray) -> tuple[int, int]:
    """How many patients share none of their groups with another, and how many there are; the unknown group is shared.

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
        raise RetFoundError(f"--subgroup_columns {text}: edges of bands are numbers, as in age:50,65") from error


def known(rows: pd.DataFrame, column: str) -> bool:
    """Whether any row has a value in a column."""
    return column in rows and bool(rows[column].notna().any())


def to_level(
    rows: pd.DataFrame, targets: np.ndarray, scores: np.ndarray, problem_type: str, report: ReportArguments
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Rows, targets and scores of the units that the report is about.

    Args:
        rows: one per image, with `patient_id` and, for eyes, `eye`.
        targets, scores: as `evaluation.metrics.compute_metrics` takes them.

    Returns:
        One row per unit, in the order of their first images; `id` is `patient` or `patient/eye`. Other columns keep
        what all images of the unit share, and are missing where they differ.

    Raises:
        RetFoundError: unknown patients or eyes, or labels that do not agree (see `evaluation.levels`).
    """
    if report.level == "image":
        return rows, targets, scores
    units = units_of(report.level, rows["patient_id"], rows.get("eye"))
    targets, scores = aggregate(problem_type, targets, scores, units, report.aggregate, report.label_conflicts)
    others = rows.drop(columns=[name for name in ("id", "image") if name in rows])
    grouped = others.groupby(units, sort=True)
    shared = grouped.first().where(grouped.nunique() <= 1)
    ids = shared["patient_id"].astype(str)
    return shared.assign(id=ids + "/" + shared["eye"].astype(str) if report.level == "eye" else ids), targets, scores


def intervals_table(estimates: dict[str, Estimate]) -> pd.DataFrame:
    """`metric`, `value`, `low`, `high`, `n` (patients), `undefined` (share of resamples), `method`."""
    return pd.DataFrame(
        [{"metric": name, **_cells(found), "method": found.method} for name, found in estimates.items()]
    )


def calibration_table(
    targets: np.ndarray, scores: np.ndarray, class_names: tuple[str, ...], problem_type: str, patients: Any
) -> pd.DataFrame:
    """A row per class, and one (`all`) for the predicted class, or for all labels pooled.

    `ece` in bins of equal width and `ece_equal_mass` in bins of as many rows; `slope` and `intercept` of
    `evaluation.recalibration` with intervals, by class.
    """
    _, scores, truth = check_classification(targets, scores, class_names, problem_type)
    sides = {name: (scores[:, column], truth[:, column]) for column, name in enumerate(class_names)}
    sides["all"] = confidence_and_correctness(truth, scores, problem_type == "single_label_classification")
    rows = []
    for name, (confidence, correct) in sides.items():
        row: dict[str, Any] = {"class": name, "positives": int(correct.sum()), "n": len(correct)}
        row["ece"] = expected_calibration_error(confidence, correct)
        row["ece_equal_mass"] = expected_calibration_error(confidence, correct, equal_mass=True)
        if name != "all":
            line = calibration_line(correct, confidence, patients)
            for part, found in (("slope", line.slope), ("intercept", line.intercept)):
                row |= {part: found.value, f"{part}_low": found.low, f"{part}_high": found.high}
        rows.append(row)
    return pd.DataFrame(rows)


def subgroups_table(
    rows: pd.DataFrame,
    targets: np.ndarray,
    scores: np.ndarray,
    class_names: tuple[str, ...],
    problem_type: str,
    report: ReportArguments,
) -> pd.DataFrame:
    """A row per column, group and metric, and a row per column and metric for the gap (`A - B`), with its p value."""
    found: list[dict[str, Any]] = []
    for column, edges in report.subgroups.items():
        groups, gaps = subgroup_metrics(
            problem_type, targets, scores, class_names, column_groups(rows[column], edges), rows["patient_id"],
            resamples=report.resamples,
        )  # fmt: skip
        for group in groups:
            for metric, estimate in group.metrics.items():
                found.append({"column": column, "group": group.name, "rows": group.rows, "metric": metric,
                              **_cells(estimate), "p_value": None})  # fmt: skip
        for gap in gaps:
            group = f"{gap.first} - {gap.second}" if gap.first else gap.comparison.difference.method
            found.append({"column": column, "group": group, "rows": len(rows),
                          "metric": gap.metric, **_cells(gap.comparison.difference),
                          "p_value": gap.comparison.p_value})  # fmt: skip
    return pd.DataFrame(found)


def _cells(estimate: Estimate) -> dict[str, Any]:
    names = ("value", "low", "high", "n", "undefined")
    return {name: getattr(estimate, name) for name in names}


logger = logging.getLogger(__name__)
POINTS_FILE = "operating_points.json"


def write_points(folder: Path, points: list[OperatingPoint], report: ReportArguments, images: int) -> None:
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
        raise RetFoundError(f"{path} is damaged ({error}); remove it, or fine-tune again") from error
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


def points_table(
    points: list[OperatingPoint], truth: np.ndarray, scores: np.ndarray, class_names: tuple[str, ...], patients: Any
) -> pd.DataFrame:
    """What the thresholds reach on a set: one row per class and criterion.

    Args:
        truth: bool (N, C).
        scores: float (N, C).
        patients: (N,) names, None where unknown.

    Returns:
        `class`, `criterion`, `target`, `threshold`, then `sensitivity`, `specificity`, `ppv` and `npv`, each with its
        `_low` and `_high`, and `positives`, `negatives`.
    """
    rows = []
    for point in points:
        column = class_names.index(point.label)
        measured = measure_threshold(truth[:, column], scores[:, column], point.threshold, patients)
        row: dict[str, Any] = {"class": point.label, "criterion": point.criterion, "target": point.target,
                               "threshold": point.threshold}  # fmt: skip
        for name in MEASURES:
            found = measured[name]
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        positives = int(truth[:, column].sum())
        rows.append({**row, "positives": positives, "negatives": len(truth) - positives})
    return pd.DataFrame(rows)


def write_report(
    output_dir: str | Path,
    rows: pd.DataFrame,
    targets: np.ndarray,
    scores: np.ndarray,
    problem_type: str,
    class_names: tuple[str, ...],
    plots: bool = True,
    report: ReportArguments | None = None,
    points: Sequence[OperatingPoint] = (),
) -> dict[str, Any]:
    """Write the three kinds of files, the tables that `report` asks for, and return the metrics.

    `predictions.csv` is about images always; metrics, plots and tables are about the units of `report.level`, whose
    own predictions stand in `predictions_<level>.csv`.

    Args:
        rows: one per image, with `id` and, where known, `patient_id`, `eye` and columns of subgroups.
        targets, scores: as `evaluation.metrics.compute_metrics` takes them.
        plots: they take longer than a small model does.
        points: thresholds chosen on other images; what they reach here goes to `operating_points.csv`.
    """
    output_dir, report = Path(output_dir), report or ReportArguments()
    extra = list(report.subgroups)
    tables = {"predictions": predictions_table(rows, targets, scores, problem_type, class_names, extra)}
    rows, targets, scores = to_level(rows, targets, scores, problem_type, report)
    if report.level != "image":
        own = predictions_table(rows, targets, scores, problem_type, class_names, extra)
        tables[f"predictions_{report.level}"] = own
    metrics = compute_metrics(problem_type, targets, scores, class_names)
    patients = rows["patient_id"].to_numpy() if "patient_id" in rows else None
    if report.confidence_intervals:
        estimates = metric_intervals(problem_type, targets, scores, class_names, patients, report.resamples)
        metrics |= {f"{name}{INTERVAL}": found.interval for name, found in estimates.items() if found.interval}
        tables["intervals"] = intervals_table(estimates)
        if problem_type != "regression":
            tables["calibration"] = calibration_table(targets, scores, class_names, problem_type, patients)
    if points:
        _, checked, truth = check_classification(targets, scores, class_names, problem_type)
        tables["operating_points"] = points_table(list(points), truth, checked, class_names, patients)
    if report.subgroups:
        tables["subgroups"] = subgroups_table(rows, targets, scores, class_names, problem_type, report)
    for name, table in tables.items():
        with atomic_file(output_dir / f"{name}.csv") as partial:
            table.to_csv(partial, index=False, float_format="%.9g")
    if plots and problem_type == "regression":
        plot_regression(targets, scores, class_names, output_dir / "plots")
    elif plots:
        plot_classification(targets, scores, class_names, problem_type, output_dir / "plots")
    write_json(output_dir / "metrics.json", metrics)
    return metrics


def predictions_table(
    rows: pd.DataFrame,
    targets: np.ndarray | None,
    scores: np.ndarray,
    problem_type: str,
    class_names: tuple[str, ...],
    columns_kept: Sequence[str] = (),
) -> pd.DataFrame:
    """`id`, `label` unless there are no targets, `prediction`, `prob/<class>`..., `patient_id` and `eye` where known.

    `columns_kept` of `rows` follow. Multi-label cells list the labels that hold, joined by `|`. Regression has no
    probabilities, and with several targets `label/<target>` and `prediction/<target>`.
    """
    columns: dict[str, Any] = {"id": rows["id"].to_numpy()}
    names = np.asarray(class_names, dtype=object)
    if problem_type == "single_label_classification":
        labels = None if targets is None else names[targets]
        columns |= {"label": labels, "prediction": names[scores.argmax(axis=1)]}
    elif problem_type == "multi_label_classification":
        labels = None if targets is None else _joined(names, targets > 0.5)
        columns |= {"label": labels, "prediction": _joined(names, scores >= 0.5)}
    else:
        scores = scores.reshape(len(rows), -1)
        targets = None if targets is None else targets.reshape(len(rows), -1)
        single = len(names) == 1
        for index, name in enumerate(names):
            columns["label" if single else f"label/{name}"] = None if targets is None else targets[:, index]
            columns["prediction" if single else f"prediction/{name}"] = scores[:, index]
    if problem_type != "regression":
        columns |= {f"prob/{name}": scores[:, index] for index, name in enumerate(names)}
    for name in dict.fromkeys(("patient_id", "eye", *columns_kept)):
        if known(rows, name) and name not in columns:
            columns[name] = rows[name].to_numpy()
    return pd.DataFrame({name: values for name, values in columns.items() if values is not None})


def _joined(names: np.ndarray, holds: np.ndarray) -> list[str]:
    return ["|".join(names[row]) for row in holds]
