"""Report of an evaluation: `metrics.json`, `predictions.csv`, tables, plots and the table for the terminal."""

import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from ..errors import BadArgumentError, BadDataError, BadModelError, join_names, nearest, one_line, require_range
from ..files import atomic_file, read_json, write_json, write_table
from ..vocabulary import POINTS_FILE, PROBLEM_TYPES, SINGLE_LABEL
from .bootstrap import MIN_DEFINED, RESAMPLES, Estimate, patient_numbers
from .document import FOOTER, INTERVAL, About, characteristics, counts_text, metric_rows, render, report_sections
from .metrics import metric_title
from .predictions import Aggregate, Conflicts, Level, Predictions
from .subgroups import UNKNOWN, column_groups, estimate_cells
from .thresholds import (
    OperatingPoint,
    class_counts,
    finding_of,
    measure_threshold,
    net_benefit_table,
    points_table,
    with_ends,
)

logger = logging.getLogger(__name__)


def compute_metrics(
    problem_type: str, labels: Any, scores: Any, class_names: Sequence[str], class_order: Sequence[str] | None = None
) -> dict[str, float | None]:
    """Every metric of `METRICS` for a problem type.

    Args:
        problem_type: as `config.problem_type` of transformers.
        labels: (N,) integer classes; (N, C) of 0 and 1 for multi-label; (N,) or (N, T) numbers for regression.
        scores: (N, C) softmax or sigmoid probabilities; (N,) or (N, T) predictions for regression.
        class_names: names of the C classes or T targets.
        class_order: see `Predictions`.

    Returns:
        Flat dictionary with `<metric>/<class>` at its end. A metric is None where the labels leave it undefined (a
        class without examples of both kinds, numbers that do not vary); one warning then names the classes.

    Raises:
        BadDataError: see `Predictions`.
    """
    order = None if class_order is None else tuple(class_order)
    return Predictions(None, scores, labels, tuple(class_names), problem_type, class_order=order).metrics()


def format_table(
    metrics: dict[str, Any], problem_type: str, class_names: Sequence[str], class_order: Sequence[str] | None = None
) -> str:
    """The overall metrics, one per line, then one line per class; of two exclusive classes the finding's first.

    Args:
        metrics: flat as in `metrics.json`: `name`, `name/<class>`, and `name_ci95` with `[low, high]`.
        problem_type, class_names, class_order: of the predictions.

    Returns:
        Lines without a final line break: 3 decimals, `undefined` for None, an interval in brackets after its value.
    """
    names = [name for name in metrics if not name.endswith(INTERVAL)]
    rows = metric_rows(names, problem_type, class_names, class_order)
    # By their names in `metrics.json`, and of a mean that it is one.
    lines = _aligned(
        [[name + title[title.find(MEAN) :] * (MEAN in title), _cell(metrics, name)] for name, title in rows]
    )
    # A class name may hold a slash itself: only the first one separates.
    columns = list(dict.fromkeys(name.split("/", 1)[0] for name in names if "/" in name))
    if columns:
        heading = ["class", *(metric_title(f"{column}/") for column in columns)]
        cells = [[label, *(_cell(metrics, f"{column}/{label}") for column in columns)] for label in class_names]
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


MEAN = ", mean of"
IDENTIFYING = ("patient_id", "id", "image")  # a group of these is one patient or one image, by name
MOST_ALONE = 0.5  # share of patients with a group of their own: above it, a column tells who they are


@dataclass
class ReportArguments:
    confidence_intervals: bool = field(
        default=False, metadata={"help": "95%% intervals over patients, of all metrics but the ECE"}
    )
    resamples: int = field(
        default=RESAMPLES,
        metadata={"help": "resamples of patients, for metrics and gaps that have a bootstrap; its seed is 0"},
    )
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

    prevalence: list[str] | None = field(
        default=None,
        metadata={
            "help": "PPV and NPV where this share of patients has the finding, as 0.02, or of a class, as amd=0.02"
        },
    )
    ungradable_column: str | None = field(
        default=None, metadata={"help": "column that marks ungradable images (1, yes): an outcome of its own"}
    )

    def __post_init__(self) -> None:
        require_range("resamples", self.resamples, MIN_DEFINED)
        if isinstance(self.prevalence, (int, float, str)):  # of a call in Python
            self.prevalence = [str(self.prevalence)]
        for text in self.prevalence or ():
            _class_and_share(text)
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

    def prevalences(
        self, problem_type: str, class_names: Sequence[str], class_order: Sequence[str] | None = None
    ) -> dict[str, float]:
        """`prevalence` by class; BadArgumentError for a class that there is not, or a number that belongs to none."""
        finding, found = finding_of(problem_type, class_names, class_order), {}
        for name, share in map(_class_and_share, self.prevalence or ()):
            label = finding if name is None else name
            if label not in class_names:
                raise BadArgumentError(
                    f"`prevalence={share:g}` needs its class, as in {class_names[-1]}={share:g}" if label is None else
                    f"`prevalence`: {label!r} is no class; classes: {join_names(class_names)}",
                    field="prevalence", value=self.prevalence, accepted=tuple(class_names),
                )  # fmt: skip
            found[label] = share
        return found

    def check_columns(self, table: pd.DataFrame, data: str) -> None:
        """Raise BadArgumentError unless a table has the columns that are asked for, and groups of patients in them.

        Args:
            table: of a labelled set, with `id` and `patient_id`.
            data: the set, for the message.
        """
        names = [str(column) for column in table if column not in ("id", "image")]
        asked = [("subgroup_columns", name) for name in self.subgroups]
        asked += [("ungradable_column", self.ungradable_column)] if self.ungradable_column else []
        for option, name in asked:
            if name not in table:
                raise BadArgumentError(
                    f"`{option}={name}`: {data} has no such column; it has {', '.join(names)}{nearest(name, names)}",
                    field=option, value=name, accepted=names,
                )  # fmt: skip
        if self.ungradable_column:
            ungradable_rows(table[self.ungradable_column])
        for name, edges in self.subgroups.items():
            field = {"field": "subgroup_columns", "value": name}
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


def _class_and_share(text: str) -> tuple[str | None, float]:
    name, equals, share = str(text).rpartition("=")
    try:
        value = float(share)
    except ValueError:
        value = np.nan
    if not 0 < value < 1:
        raise BadArgumentError(
            f"`prevalence={text}`: give a share above 0 and below 1, as 0.02, or of a class, as amd=0.02",
            field="prevalence", value=text,
        )  # fmt: skip
    return name if equals else None, value


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
        stored = read_json(path)
        points = TypeAdapter(list[OperatingPoint]).validate_python(stored["points"])
        level, how = stored["level"], stored["aggregate"]
        if not np.isfinite([point.threshold for point in points]).all():
            raise ValueError("a threshold is no number")
    except (ValueError, KeyError) as error:
        reason = one_line(error)
        raise BadModelError(f"{path} is damaged ({reason}); remove it, or fine-tune again", model=folder) from error
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
    about: About | None = None,
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
        about: what `report.html` says beside the figures; None: no page.
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
    if PROBLEM_TYPES[predictions.problem_type].is_classification:
        tables |= {"counts": class_counts(predictions), "net_benefit": net_benefit_table(predictions)}
    if points:
        shares = arguments.prevalences(predictions.problem_type, predictions.class_names, predictions.class_order)
        tables["operating_points"] = points_table(predictions, points, shares)
        if column := arguments.ungradable_column:
            marked, unread = ungradable_rows(predictions.columns[column]), about.unread if about else None
            unread = unread if arguments.level == "image" else None
            tables["ungradable"] = ungradable_table(predictions, points, marked, unread)
    if arguments.subgroups:
        tables["subgroups"] = predictions.subgroups(arguments.subgroups, arguments.resamples)
    for name, table in tables.items():
        write_table(folder / f"{name}.csv", table, float_format="%.9g")
    figures: list[Path] = []
    if plots:
        from .plots import write_plots  # matplotlib takes a second

        figures = write_plots(folder / "plots", predictions)
    write_json(folder / "metrics.json", metrics)
    if about is not None:
        table = characteristics(about.parts, predictions.problem_type, predictions.class_names)
        write_table(folder / "characteristics.csv", table.rename_axis("characteristic").reset_index())
        shown, counts = {**tables, "characteristics": table}, counts_text(predictions, arguments.level)
        sections = report_sections(about, predictions, metrics, shown, figures, counts)
        page = render(about.name, f"{counts}.", sections, FOOTER)
        with atomic_file(folder / "report.html") as partial:
            partial.write_text(page, encoding="utf-8")
    return metrics


UNGRADABLE = ("1", "1.0", "true", "yes", "y", "ungradable", "ungradeable", "reject", "inadequate", "unusable")
GOOD = re.compile(r"(?<!un)grad(e?)able|(?<!un)usable|adequate|quality|good")
GRADABLE = ("0", "0.0", "false", "no", "n", "gradable", "gradeable", "good", "adequate", "usable", "")


def ungradable_rows(column: pd.Series) -> np.ndarray:
    """bool (N,): the rows that a column marks as ungradable, with 1, true, yes or ungradable; missing is gradable.

    Raises:
        BadDataError: another value, or 1 and yes in a column that is named for what is gradable.
    """
    texts, name = column.fillna("").astype(str).str.strip().str.casefold(), str(column.name).casefold()
    if GOOD.search(name) and texts.isin([*UNGRADABLE[:5], *GRADABLE[:5]]).any():
        message = f"column {column.name} is named for what is gradable, and holds {texts.iloc[0]!r}"
        raise BadDataError(f"{message}; give a column of 1 for ungradable images, or of gradable and ungradable")
    unknown = texts[~texts.isin([*UNGRADABLE, *GRADABLE])]
    if len(unknown):
        wrong = f"column {column.name} marks ungradable images, and holds {unknown.iloc[0]!r}"
        raise BadDataError(f"{wrong}; give 1 or 0, true or false, yes or no", rows=unknown.index)
    return texts.isin(UNGRADABLE).to_numpy()


def ungradable_table(
    predictions: Predictions, points: Sequence[OperatingPoint], marked: np.ndarray, unread: np.ndarray | None = None
) -> pd.DataFrame:
    """Effect of images that cannot be graded on each threshold: counted as positive (referred), or left out.

    Args:
        predictions: with labels.
        points: thresholds chosen elsewhere.
        marked: bool (N,), the ungradable rows.
        unread: targets of images that no prediction exists for, as `predictions.targets`; all of them are referred.

    Returns:
        `class`, `criterion`, `target`, `threshold`, `ungradable_positives` and `ungradable_negatives`, and
        `sensitivity` and `specificity`, each as `_referred` and as `_gradable`, with `_low` and `_high`.
    """
    truth, numbers = predictions.truth, patient_numbers(predictions.patients, len(predictions))
    if unread is not None and len(unread):
        more = unread[:, None] == np.arange(truth.shape[1]) if predictions.rows.single else unread == 1
        truth, marked = np.r_[truth, more], np.r_[marked, np.ones(len(more), bool)]
        numbers = np.r_[numbers, numbers.max() + 1 + np.arange(len(more))]
    rows = []
    for point in points:
        index = predictions.class_names.index(point.label)
        side = truth[:, index]
        called = np.r_[predictions.scores[:, index] >= point.threshold, np.ones(len(side) - len(predictions), bool)]
        row: dict[str, Any] = {"class": point.label, "criterion": point.criterion, "target": point.target,
                               "threshold": point.threshold, "ungradable_positives": int((marked & side).sum()),
                               "ungradable_negatives": int((marked & ~side).sum())}  # fmt: skip
        for suffix, kept in (("referred", np.ones(len(side), bool)), ("gradable", ~marked)):
            found = measure_threshold(side[kept], (called | marked)[kept], 0.5, numbers[kept])
            row |= with_ends({f"{name}_{suffix}": found[name] for name in ("sensitivity", "specificity")})
        rows.append(row)
    return pd.DataFrame(rows)


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
