"""Predictions of one model on one set, with the labels: what every figure of a report is computed from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import BadDataError
from ..files import atomic_file
from ..vocabulary import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .aggregation import Aggregate, Conflicts, Level, aggregate, units_of
from .metrics import THRESHOLD, Rows, metric_names, plain_metrics, warn_undefined
from .validation import SUM_TOLERANCE, check_classification, check_problem_type, check_regression

if TYPE_CHECKING:
    from .estimates import Estimate
    from .thresholds import OperatingPoint

PROBABILITY = "prob/"


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores of N images (or eyes, or patients) and their labels, checked on construction.

    Attributes:
        ids: (N,) unique names; their numbers where None is given.
        scores: (N, C) probabilities; (N, T) numbers for regression.
        targets: (N,) class indices, (N, C) of 0 and 1, or (N, T) numbers; None where labels are unknown.
        class_names: names of the C classes or T targets, in the order of `scores`.
        problem_type: as `config.problem_type` of transformers, a key of `PROBLEM_TYPES`.
        patients: (N,) names of patients, the units of all intervals; None where all are unknown.
        eyes: (N,) sides; None where all are unknown.
        columns: (N rows) further columns of the labelled table, for subgroups.

    Raises:
        BadDataError: shapes that do not fit, NaN, probabilities outside 0 to 1, repeated ids; `rows` lists them.
    """

    ids: np.ndarray
    scores: np.ndarray
    targets: np.ndarray | None
    class_names: tuple[str, ...]
    problem_type: str
    patients: np.ndarray | None = None
    eyes: np.ndarray | None = None
    columns: pd.DataFrame | None = None

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        check_problem_type(self.problem_type)
        put("class_names", tuple(map(str, self.class_names)))
        given = np.arange(len(self.scores)) if self.ids is None else self.ids
        ids = pd.Series(np.asarray(given, dtype=object).astype(str))
        put("ids", ids.to_numpy(object))
        if ids.duplicated().any():
            repeated = ids[ids.duplicated()].unique()
            raise BadDataError(f"{len(repeated)} id(s) occur more than once, such as {repeated[0]}", rows=repeated)
        if self.problem_type == REGRESSION:
            targets, scores = check_regression(self.scores if self.targets is None else self.targets, self.scores)
            if len(self.class_names) != scores.shape[1]:
                names, count = list(self.class_names), scores.shape[1]
                raise BadDataError(f"{len(names)} target names {names} for {count} targets; give one per target")
        else:
            unknown = np.zeros(np.shape(self.scores)[: 1 if self.problem_type == SINGLE_LABEL else 2], np.int64)
            targets = unknown if self.targets is None else self.targets
            targets, scores, _ = check_classification(targets, self.scores, self.class_names, self.problem_type)
        put("scores", scores)
        put("targets", None if self.targets is None else targets)
        if len(scores) != len(ids):
            raise BadDataError(f"{len(ids)} ids were given for {len(scores)} rows of scores; give one per row")
        for name in ("patients", "eyes"):
            values = getattr(self, name)
            if values is not None:
                values = np.asarray(values, dtype=object)
                if len(values) != len(ids):
                    raise BadDataError(f"{len(values)} {name} were given for {len(ids)} rows; give one per row")
                put(name, values if pd.notna(values).any() else None)
        if self.columns is not None:
            put("columns", self.columns.reset_index(drop=True))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def rows(self) -> Rows:
        """Labels and scores as metrics take them."""
        if self.targets is None:
            raise BadDataError("metrics need labels, and these predictions have none")
        return Rows(self)

    @property
    def truth(self) -> np.ndarray | None:
        """bool (N, C): whether row n is of class c; None for regression."""
        return self.rows.truth

    def select(self, rows: np.ndarray) -> "Predictions":
        """Predictions of some rows, given by number."""
        arrays = {name: getattr(self, name) for name in ("ids", "scores", "targets", "patients", "eyes")}
        chosen = {name: None if values is None else values[rows] for name, values in arrays.items()}
        return replace(self, **chosen, columns=None if self.columns is None else self.columns.iloc[rows])

    @classmethod
    def of_table(
        cls, rows: pd.DataFrame, targets: np.ndarray | None, scores: np.ndarray, class_names: Sequence[str],
        problem_type: str,
    ) -> "Predictions":  # fmt: skip
        """Predictions for rows of a labelled table.

        Args:
            rows: with `id` and, where known, `patient_id`, `eye` and further columns.
            targets, scores, class_names, problem_type: as the attributes.
        """
        known = {name: rows[name].to_numpy() if name in rows else None for name in ("patient_id", "eye")}
        return cls(rows["id"], scores, targets, tuple(class_names), problem_type, *known.values(), columns=rows)

    def metrics(self) -> dict[str, float | None]:
        """Every metric of `METRICS` for this problem type, by name.

        Returns:
            Values, then those per class as `<metric>/<class>`; None, with one warning that names the classes, where
            the labels leave a metric undefined.
        """
        warn_undefined(self.rows)
        return plain_metrics(self.rows, self.metric_names)

    @property
    def metric_names(self) -> list[str]:
        """Names of all metrics, then those per class."""
        return metric_names(self.problem_type, self.class_names)

    def intervals(self, resamples: int = 2000, seed: int = 0) -> "dict[str, Estimate]":
        """Metrics with 95% intervals over patients (over rows where patients are unknown), by name."""
        from .bootstrap import metric_intervals

        return metric_intervals(
            self.problem_type, self.targets, self.scores, self.class_names, self.patients, resamples, seed
        )

    def at_level(
        self, level: Level, aggregate_by: Aggregate = "mean", label_conflicts: Conflicts = "error"
    ) -> "Predictions":
        """Predictions of patients or eyes from those of their images.

        Args:
            level: "image" (these), "eye" or "patient".
            aggregate_by: score of a unit: "mean" of its images' scores, or "max".
            label_conflicts: "error", or "max" for the highest grade among a unit's images.

        Returns:
            One row per unit in the order of their first images; its id is `patient` or `patient/eye`. Other columns
            keep what all images of the unit share, and are missing where they differ.

        Raises:
            BadDataError: unknown patients or eyes, or labels that do not agree.
        """
        if level == "image":
            return self
        units = units_of(level, self.patients if self.patients is not None else [None] * len(self), self.eyes)
        labels = self.scores if self.targets is None else self.targets
        targets, scores = aggregate(self.problem_type, labels, self.scores, units, aggregate_by, label_conflicts)
        columns = pd.DataFrame() if self.columns is None else self.columns
        others = columns.drop(columns=[name for name in ("id", "image") if name in columns])
        others = others.assign(patient_id=self.patients)
        if self.eyes is not None:
            others = others.assign(eye=self.eyes)
        grouped = others.groupby(units, sort=True)
        shared = grouped.first().where(grouped.nunique() <= 1)
        ids = shared["patient_id"].astype(str)
        ids = ids + "/" + shared["eye"].astype(str) if level == "eye" else ids
        eyes = shared["eye"].to_numpy() if "eye" in shared else None
        return replace(
            self, ids=ids.to_numpy(), scores=scores, targets=None if self.targets is None else targets,
            patients=shared["patient_id"].to_numpy(), eyes=eyes, columns=shared.assign(id=ids),
        )  # fmt: skip

    def subgroups(self, columns: Mapping[str, Any] | Sequence[str], resamples: int = 2000) -> pd.DataFrame:
        """Metrics per group, and the gap between groups, with 95% intervals.

        Args:
            columns: names of `self.columns`; as a mapping, with the edges of bands of numbers, or None.
            resamples: of the bootstrap over patients.

        Returns:
            A row per column, group and metric, then a row per column and metric for the gap, with its p value.
        """
        from .report import subgroups_table

        return subgroups_table(self, columns if isinstance(columns, Mapping) else dict.fromkeys(columns), resamples)

    def operating_points(self, points: "Sequence[OperatingPoint]") -> pd.DataFrame:
        """What thresholds chosen on other images reach here: one row per class and criterion."""
        from .report import points_table

        return points_table(points, self)

    def table(self, columns: Sequence[str] = ()) -> pd.DataFrame:
        """`predictions.csv` as a table.

        Args:
            columns: further columns of `self.columns` to keep.

        Returns:
            `id`, `label` where known, `prediction`, `prob/<class>`..., `patient_id` and `eye` where known. Multi-label
            cells list the findings, joined by `|`. Regression has no probabilities, and with several targets
            `label/<target>` and `prediction/<target>`.
        """
        found: dict[str, Any] = {"id": self.ids}
        names = np.asarray(self.class_names, dtype=object)
        if self.problem_type == SINGLE_LABEL:
            found["label"] = None if self.targets is None else names[self.targets]
            found["prediction"] = names[self.scores.argmax(axis=1)]
        elif self.problem_type == MULTI_LABEL:
            found["label"] = None if self.targets is None else _joined(names, self.truth)
            found["prediction"] = _joined(names, self.scores >= THRESHOLD)
        else:
            for index, name in enumerate(names):
                suffix = "" if len(names) == 1 else f"/{name}"
                found[f"label{suffix}"] = None if self.targets is None else self.targets[:, index]
                found[f"prediction{suffix}"] = self.scores[:, index]
        if self.problem_type != REGRESSION:
            found |= {f"{PROBABILITY}{name}": self.scores[:, index] for index, name in enumerate(names)}
        found |= {"patient_id": self.patients, "eye": self.eyes}
        for name in columns:
            if name not in found and self.columns is not None and name in self.columns:
                found[name] = self.columns[name].to_numpy()
        return pd.DataFrame({name: values for name, values in found.items() if values is not None})

    def to_csv(self, path: str | Path, columns: Sequence[str] = ()) -> None:
        """Write `table(columns)` to `path`, whole or not at all."""
        with atomic_file(path) as partial:
            self.table(columns).to_csv(partial, index=False, float_format="%.9g")

    @classmethod
    def read_csv(cls, path: str | Path, problem_type: str | None = None) -> "Predictions":
        """Predictions that `to_csv` wrote, or a table of another tool with the same columns.

        Args:
            path: CSV with `id`, `prediction` or `prob/<class>`..., and optionally `label`, `patient_id`, `eye`.
            problem_type: found from the columns where None: without `prob/` numbers; else classes where the
                probabilities of each row sum to 1, and findings where they do not.

        Raises:
            BadDataError: columns that are missing, or labels that are no class.
        """
        table = pd.read_csv(path, dtype={"id": str, "patient_id": str, "label": object, "prediction": object})
        names = [name.removeprefix(PROBABILITY) for name in table if str(name).startswith(PROBABILITY)]
        if "id" not in table:
            raise BadDataError(f"{path} has no column id", source=path)
        if not names:
            return cls._read_numbers(table, path)
        scores = table[[PROBABILITY + name for name in names]].to_numpy(np.float64)
        if problem_type is None:
            exclusive = len(names) > 1 and (np.abs(scores.sum(axis=1) - 1) <= SUM_TOLERANCE).all()
            problem_type = SINGLE_LABEL if exclusive else MULTI_LABEL
        targets = None
        if "label" in table:
            labels = table["label"].fillna("").astype(str)
            found = [[cell] if problem_type == SINGLE_LABEL else cell.split("|") if cell else [] for cell in labels]
            wrong = [row for row, cells in enumerate(found) if not set(cells) <= set(names)]
            if wrong:
                ids, label = table["id"].iloc[wrong], labels.iloc[wrong[0]]
                raise BadDataError(
                    f"{path}: {len(wrong)} label(s), such as {label!r} of {ids.iloc[0]}, are no class; "
                    f"classes: {', '.join(names)}", rows=ids, source=path,
                )  # fmt: skip
            targets = np.array([[name in cells for name in names] for cells in found])
            targets = targets.argmax(axis=1) if problem_type == SINGLE_LABEL else targets.astype(np.int64)
        return cls.of_table(table, targets, scores, names, problem_type)

    @classmethod
    def _read_numbers(cls, table: pd.DataFrame, path: str | Path) -> "Predictions":
        predicted = [str(name) for name in table if str(name).split("/")[0] == "prediction"]
        if not predicted:
            raise BadDataError(f"{path} has neither prob/<class> nor prediction columns", source=path)
        labels = ["label" + name.removeprefix("prediction") for name in predicted]
        names = [name.partition("/")[2] or "target" for name in predicted]
        known = all(name in table for name in labels)
        targets = table[labels].to_numpy(np.float64) if known else None
        return cls.of_table(table, targets, table[predicted].to_numpy(np.float64), names, REGRESSION)


def _joined(names: np.ndarray, holds: np.ndarray) -> list[str]:
    return ["|".join(names[row]) for row in holds]
