"""Predictions of one model on one set, with the labels: what every figure of a report is computed from."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from ..errors import BadArgumentError, BadDataError, join_names, require, require_range
from ..files import numbers_of, read_table, write_table
from ..vocabulary import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL, known_order
from .bootstrap import MIN_DEFINED, RESAMPLES, Estimate, Patients, patient_numbers, patients_of
from .intervals import find_intervals
from .metrics import THRESHOLD, Rows, metric_of, metrics_for, weighted_metrics
from .thresholds import OperatingPoint, finding_of, points_table

Level = Literal["image", "eye", "patient"]
Aggregate = Literal["mean", "max"]
Conflicts = Literal["error", "max"]
PROBABILITY = "prob/"
# Rows of a softmax that ran in bfloat16 (8 bits of mantissa) miss a sum of one by up to about this much.
SUM_TOLERANCE = 0.02


@dataclass(frozen=True, eq=False)
class Predictions:
    """Scores of N images (or eyes, or patients) and their labels, checked on construction.

    Attributes:
        ids: (N,) unique names; their numbers where None is given.
        scores: float64 (N, C) probabilities; (N, T) numbers for regression.
        targets: int64 (N,) class indices, int64 (N, C) of 0 and 1, or float64 (N, T); None where labels are unknown.
        class_names: names of the C classes or T targets, in the order of `scores`.
        problem_type: as `config.problem_type` of transformers, a key of `PROBLEM_TYPES`.
        patients: (N,) names of patients, the units of all intervals; None where all are unknown.
        eyes: (N,) sides; None where all are unknown.
        columns: (N rows) further columns of the labelled table, for subgroups.
        class_order: exclusive classes from the lowest to the highest, of two the finding last; None: as the names
            tell (`vocabulary.known_order`), if they do.

    Raises:
        BadArgumentError: an unknown problem type, or class names that do not fit it.
        BadDataError: shapes that do not fit, NaN, probabilities outside 0 to 1, labels outside the classes, repeated
            ids; `rows` has the ids.
    """

    ids: np.ndarray
    scores: np.ndarray
    targets: np.ndarray | None
    class_names: tuple[str, ...]
    problem_type: str
    patients: np.ndarray | None = None
    eyes: np.ndarray | None = None
    columns: pd.DataFrame | None = None
    class_order: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        put = partial(object.__setattr__, self)
        require("problem_type", self.problem_type, PROBLEM_TYPES)
        put("class_names", tuple(map(str, self.class_names)))
        least = 2 if self.problem_type == SINGLE_LABEL else 1
        if len(set(self.class_names)) < max(least, len(self.class_names)):
            raise BadArgumentError(
                f"`class_names` {list(self.class_names)} must be at least {least} different names for "
                f"{self.problem_type}", field="class_names", value=self.class_names,
            )  # fmt: skip
        if self.problem_type == SINGLE_LABEL:
            put("class_order", tuple(self.class_order or ()) or known_order(self.class_names))
        put("scores", self._numbers("scores", self.scores, columns=True))
        rows = len(self.scores)
        for name in ("ids", "patients", "eyes"):
            values = getattr(self, name)
            if values is not None and len(values) != rows:
                raise BadDataError(f"{len(values)} {name} were given for {rows} rows of scores; give one per row")
        ids = pd.Series(np.arange(rows) if self.ids is None else np.asarray(self.ids, dtype=object)).astype(str)
        put("ids", ids.to_numpy(object))
        if ids.duplicated().any():
            repeated = ids[ids.duplicated()].unique()
            raise BadDataError(f"{len(repeated)} id(s) occur more than once, such as {repeated[0]}", rows=repeated)
        if self.targets is not None:
            put("targets", self._numbers("targets", self.targets, columns=self.problem_type != SINGLE_LABEL))
        if self.problem_type != REGRESSION:
            self._check_probabilities()
            if self.targets is not None:
                self._check_labels()
                put("targets", self.targets.astype(np.int64))
        for name in ("patients", "eyes"):
            values = None if getattr(self, name) is None else np.asarray(getattr(self, name), dtype=object)
            put(name, values if values is not None and pd.notna(values).any() else None)
        if self.columns is not None:
            put("columns", self.columns.reset_index(drop=True))

    def _numbers(self, name: str, values: Any, columns: bool) -> np.ndarray:
        """Finite numbers as float64 of the shape that fits: (N, C) with `columns`, else (N,)."""
        try:
            array = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise BadDataError(f"{name} must be an array of numbers: {error}") from error
        if columns and array.ndim == 1 and self.problem_type == REGRESSION:
            array = array[:, None]
        rows = len(array) if name == "scores" and array.ndim else len(self.scores)
        expected = (rows, len(self.class_names)) if columns else (rows,)
        if array.shape != expected or not rows:
            fitting = ("N", *expected[1:]) if name == "scores" else expected
            raise BadDataError(
                f"{name} have shape {array.shape}; {self.problem_type} with {join_names(self.class_names)} takes "
                f"{fitting}, and at least one row"
            )
        finite = np.isfinite(array)
        if not finite.all():
            bad = self._named(~finite.reshape(rows, -1).all(axis=1))
            raise BadDataError(f"{name} hold NaN or infinite values in {len(bad)} row(s), such as {bad[0]}", rows=bad)
        return array

    def _named(self, rows: np.ndarray) -> np.ndarray:
        """Ids of rows, given as bool (N,); their numbers where there are no ids."""
        numbers = np.flatnonzero(rows)
        return numbers.astype(str) if self.ids is None else np.asarray(self.ids, dtype=object)[numbers]

    def _check_probabilities(self) -> None:
        outside = (self.scores < 0) | (self.scores > 1)
        if outside.any():
            extreme = self.scores.flat[np.abs(self.scores - 0.5).argmax()]
            activation = "softmax" if self.problem_type == SINGLE_LABEL else "sigmoid"
            raise BadDataError(
                f"probability {extreme:g} is outside 0 to 1; apply {activation} to logits first",
                rows=self._named(outside.any(axis=1)),
            )
        off = np.abs(self.scores.sum(axis=1) - 1)
        if self.problem_type == SINGLE_LABEL and off.max() > SUM_TOLERANCE:
            worst = int(off.argmax())
            raise BadDataError(
                f"probabilities of row {worst} sum to {self.scores[worst].sum():.4g}; those of exclusive classes sum "
                "to 1 (softmax)", rows=self._named(off > SUM_TOLERANCE),
            )  # fmt: skip

    def _check_labels(self) -> None:
        highest = len(self.class_names) - 1 if self.problem_type == SINGLE_LABEL else 1
        bad = (self.targets != np.floor(self.targets)) | (self.targets < 0) | (self.targets > highest)
        if bad.any():
            raise BadDataError(
                f"label {self.targets[bad][0]:g} is not accepted; labels are whole numbers from 0 to {highest}",
                rows=self._named(bad.reshape(len(bad), -1).any(axis=1)),
            )

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

    @property
    def finding(self) -> str | None:
        """Of two exclusive classes the one that figures and reports are about; None for all other tasks."""
        return finding_of(self.problem_type, self.class_names, self.class_order)

    @property
    def metric_names(self) -> list[str]:
        """Names in `metrics.json`: the metrics, then `<metric>/<class>`; a lone target has no names of its own."""
        rows = metrics_for(self.problem_type)
        labels = self.class_names if self.problem_type != REGRESSION or len(self.class_names) > 1 else ()
        own = [row.of_class or row for row in rows if row.of_class or row.per_class]
        return [row.name for row in rows] + [f"{value.name}/{label}" for value in own for label in labels]

    def select(self, rows: np.ndarray) -> "Predictions":
        """Predictions of some rows, given by number."""
        arrays = {name: getattr(self, name) for name in ("ids", "scores", "targets", "patients", "eyes")}
        chosen = {name: None if values is None else values[rows] for name, values in arrays.items()}
        return replace(self, **chosen, columns=None if self.columns is None else self.columns.iloc[rows])

    @classmethod
    def of_table(
        cls, rows: pd.DataFrame, targets: np.ndarray | None, scores: np.ndarray, class_names: Sequence[str],
        problem_type: str, class_order: Sequence[str] | None = None,
    ) -> "Predictions":  # fmt: skip
        """Predictions for rows of a labelled table.

        Args:
            rows: with `id` and, where known, `patient_id`, `eye` and further columns.
            targets, scores, class_names, problem_type, class_order: as the attributes.
        """
        patients, eyes = (rows[name].to_numpy() if name in rows else None for name in ("patient_id", "eye"))
        order = None if class_order is None else tuple(class_order)
        return cls(rows["id"], scores, targets, tuple(class_names), problem_type, patients, eyes, rows, order)

    def metrics(self) -> dict[str, float | None]:
        """Every metric of `METRICS` for this problem type, by name.

        Returns:
            Values, then those per class as `<metric>/<class>`; None, with one warning that names the classes, where
            the labels leave a metric undefined.
        """
        self._warn_undefined()
        return self.values(self.metric_names)

    def values(self, names: Collection[str]) -> dict[str, float | None]:
        """Metrics by name; None, without a warning, where the labels leave one undefined."""
        found = weighted_metrics(self.rows, names, np.ones((1, len(self))))
        return {name: None if np.isnan(value[0]) else float(value[0]) for name, value in found.items()}

    def _warn_undefined(self) -> None:
        """Warn once of classes or targets without a value, and of what that means for the averages."""
        rows = [row for row in metrics_for(self.problem_type) if row.per_class]
        lacking = {row.name: np.flatnonzero(~self.rows.defined(row)) for row in rows}
        lacking = {name: classes for name, classes in lacking.items() if len(classes)}
        if not lacking:
            return
        classes = np.unique(np.concatenate(list(lacking.values())))
        left = len(self.class_names) - len(classes)
        why = "the labels, or the predictions," if self.problem_type == REGRESSION else f"the {len(self)} labels"
        rest = f"the averages are over the other {left}" if left else "so are their averages"
        warnings.warn(
            f"{', '.join(lacking)} are undefined for {join_names(self.class_names[index] for index in classes)}: "
            f"{why} do not vary; {rest}", stacklevel=3,
        )  # fmt: skip

    def intervals(self, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
        """Every metric with its 95% interval over patients (over rows where patients are unknown), by name.

        All images of a patient count together. The row of a metric in `METRICS` names how its interval is found: a
        score interval for AUROC, Agresti and Coull's for shares, combined for balanced accuracy, the jackknife with
        Student's t for F1, kappa, AUPRC and losses, the bootstrap for numbers. There is none for the ECE, which is
        biased upwards in a sample, nor with fewer than `Metric.fewest` patients; `method` says why.

        In simulations (30 to 1,000 patients, prevalences of 2 to 50%, AUROCs of 0.6 to 0.97, scores of two eyes that
        correlate by 0.2 to 0.9) the intervals of AUROC, accuracy and balanced accuracy hold the true value in 93 to
        99% of samples, with five or fewer patients of the rarer class in up to 100%; those of the jackknife in 94 to
        99%, at worst in 90%.

        Args:
            resamples: number of bootstrap samples, at least 100.
            seed: another one draws other patients.

        Raises:
            BadDataError: a single patient.
        """
        require_range("resamples", resamples, MIN_DEFINED)
        return find_intervals(self, self.metrics(), resamples, seed)

    def shares(self, names: Collection[str]) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
        """Names that are shares of rows, with whether each of these rows counts, and its patient."""
        patients = patient_numbers(self.patients, len(self))
        for name in names:
            value, (_, _, label) = metric_of(name).of_class, name.partition("/")
            if label and value and value.sides:
                among, counted = (side[:, self.class_names.index(label)] for side in value.sides(self.rows))
                yield name, (counted[among], patients[among])

    def resampling(self, names: Collection[str]) -> Iterator[tuple[list[str], Patients]]:
        """The metrics that are drawn together, and the units that are drawn for them.

        Metrics that do not depend on how frequent the classes are (`within_class`) have their patients drawn within
        their class. All others do depend on it, and drawing within classes would hide that part of their variation:
        they get free draws. Metrics without interval are not drawn.
        """
        for within in (False, True):
            rows = {name: metric_of(name) for name in names}
            chosen = [name for name, row in rows.items() if row.interval and row.within_class == within]
            if chosen:
                yield chosen, patients_of(self.patients, len(self), self.truth if within else None)

    def without_interval(self, name: str) -> Estimate:
        """Value of a metric that has no interval, because resamples bias it."""
        count = int(patient_numbers(self.patients, len(self)).max()) + 1
        method = f"no interval: the {metric_of(name).title} of a sample is biased upwards"
        return Estimate(self.values([name])[name], None, None, count, method)

    def at_level(
        self, level: Level, aggregate_by: Aggregate = "mean", label_conflicts: Conflicts = "error"
    ) -> "Predictions":
        """Predictions of patients or eyes from those of their images.

        Args:
            level: "image" (these), "eye" or "patient".
            aggregate_by: score of a unit: "mean" of its images' scores, or "max", the highest of each class; those
                of exclusive classes are then divided by their sum, so that no class is favoured.
            label_conflicts: "error", or "max" for the highest label among a unit's images: of findings and numbers
                what any image shows, of classes the last in `class_order`, which must be known.

        Returns:
            One row per unit in the order of their first images; its id is `patient` or `patient/eye`. Other columns
            keep what all images of the unit share, and are missing where they differ.

        Raises:
            BadDataError: unknown patients or eyes, or labels that do not agree; `rows` has the ids.
            BadArgumentError: the highest of classes whose order is not known.
        """
        require("level", level, get_args(Level))
        if level == "image":
            return self
        keys = {"patient_id": self.patients} | ({"eye": self.eyes} if level == "eye" else {})
        units, targets = _units(level, keys, self.ids), self.targets
        if targets is not None:
            conflicting = _conflicts(targets, units)
            if len(conflicting) and label_conflicts == "error":
                raise BadDataError(
                    f"the images of {len(conflicting)} of {units.max() + 1} units have different labels; choose a "
                    "level at which they agree, such as `level='eye'`, or pass `label_conflicts='max'` to take the "
                    "highest label", rows=self.ids[np.isin(units, conflicting)],
                )  # fmt: skip
            if len(conflicting) and self.problem_type == SINGLE_LABEL:
                targets = np.array(self._by_rank)[_over(np.maximum, np.argsort(self._by_rank)[targets], units)]
            else:
                targets = _over(np.maximum, targets, units)
        scores = _mean(self.scores, units) if aggregate_by == "mean" else _over(np.maximum, self.scores, units)
        if aggregate_by == "max" and self.problem_type == SINGLE_LABEL:
            scores = scores / scores.sum(axis=1, keepdims=True)
        others = pd.DataFrame(index=range(len(self))) if self.columns is None else self.columns
        others = others.drop(columns=[name for name in ("id", "image") if name in others])
        others = others.assign(patient_id=self.patients, **({} if self.eyes is None else {"eye": self.eyes}))
        grouped = others.groupby(units, sort=True)
        shared = grouped.first().where(grouped.nunique() <= 1)
        ids = shared["patient_id"].astype(str)
        ids = ids + "/" + shared["eye"].astype(str) if level == "eye" else ids
        return Predictions.of_table(
            shared.assign(id=ids), targets, scores, self.class_names, self.problem_type, self.class_order
        )

    @property
    def _by_rank(self) -> list[int]:
        """Index of each class, from the lowest to the highest."""
        if self.class_order is None:
            raise BadArgumentError(
                f"`label_conflicts='max'` takes the highest class, and the order of {join_names(self.class_names, 9)} "
                "is not known: state it when training, with `class_names` (of two classes `positive_class`)",
                field="label_conflicts", value="max",
            )  # fmt: skip
        return [self.class_names.index(name) for name in self.class_order]

    def subgroups(
        self, columns: Mapping[str, Sequence[float] | None] | Sequence[str], resamples: int = RESAMPLES
    ) -> pd.DataFrame:
        """Metrics per group, and the gap between groups, with 95% intervals.

        Args:
            columns: names of `self.columns`; as a mapping, with the edges of bands of numbers, or None.
            resamples: of the bootstrap over patients.

        Returns:
            A row per column, group and metric, then one for the gap with its p value; `method` says what is missing.
        """
        from .subgroups import subgroups_table

        return subgroups_table(self, columns if isinstance(columns, Mapping) else dict.fromkeys(columns), resamples)

    def operating_points(self, points: Sequence[OperatingPoint]) -> pd.DataFrame:
        """Sensitivity, specificity and predictive values of thresholds chosen on other images, see `points_table`."""
        return points_table(self, points)

    def calibration(self) -> pd.DataFrame:
        """Calibration errors, slope and intercept by class, see `calibration.calibration_table`."""
        from .calibration import calibration_table

        return calibration_table(self)

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
            known = self.columns is not None and name in self.columns and self.columns[name].notna().any()
            if name not in found and known:
                found[name] = self.columns[name].to_numpy()
        return pd.DataFrame({name: values for name, values in found.items() if values is not None})

    def to_csv(self, path: str | Path, columns: Sequence[str] = ()) -> None:
        """Write `table(columns)` to `path`, whole or not at all."""
        write_table(path, self.table(columns), float_format="%.9g")

    @classmethod
    def read_csv(cls, path: str | Path, problem_type: str | None = None) -> "Predictions":
        """Predictions that `to_csv` wrote, or a table of another tool with the same columns.

        Args:
            path: CSV with `id`, `prediction` or `prob/<class>`..., and optionally `label`, `patient_id`, `eye`.
            problem_type: found from the columns where None: without `prob/` numbers; else classes where the
                probabilities of each row sum to 1, and findings where they do not.

        Raises:
            BadDataError: a damaged file, columns that are missing or hold no numbers, or labels that are no class.
        """
        text = {"id": str, "patient_id": str, "eye": str, "label": str, "prediction": str}
        # A class may be called None or NA: only an empty cell is missing.
        table = read_table(path, dtype=text, na_values=[""])
        names = [name.removeprefix(PROBABILITY) for name in table if str(name).startswith(PROBABILITY)]
        if "id" not in table:
            raise BadDataError(f"{path} has no column id", source=path)
        if not names:
            return cls._read_numbers(table, path)
        scores = numbers_of(table, [PROBABILITY + name for name in names], path)
        if problem_type is None:
            exclusive = len(names) > 1 and (np.abs(scores.sum(axis=1) - 1) <= SUM_TOLERANCE).all()
            problem_type = SINGLE_LABEL if exclusive else MULTI_LABEL
        targets = None
        if "label" in table and (problem_type == MULTI_LABEL or table["label"].notna().any()):
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
        targets = numbers_of(table, labels, path) if known else None
        return cls.of_table(table, targets, numbers_of(table, predicted, path), names, REGRESSION)


def _joined(names: np.ndarray, holds: np.ndarray) -> list[str]:
    return ["|".join(names[row]) for row in holds]


def _units(level: Level, columns: Mapping[str, Any], ids: np.ndarray) -> np.ndarray:
    """Number of each row's unit, int64 (N,), in the order in which units first come."""
    for name, values in columns.items():
        missing = np.ones(len(ids), bool) if values is None else pd.isna(values)
        if missing.any():
            raise BadDataError(
                f"`level={level}` needs {name} for every image, and {missing.sum()} of {len(ids)} have none; fill in "
                f"the column {name}, or evaluate at another level", rows=ids[missing],
            )  # fmt: skip
    table = pd.DataFrame({name: values.astype(str) for name, values in columns.items()})
    return table.groupby(list(columns), sort=False).ngroup().to_numpy(np.int64)


def _conflicts(labels: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Numbers of the units whose images have different labels."""
    differ = _over(np.maximum, labels, units) != _over(np.minimum, labels, units)
    return np.flatnonzero(differ.reshape(len(differ), -1).any(axis=1))


def _over(choose: np.ufunc, values: np.ndarray, units: np.ndarray) -> np.ndarray:
    """Highest or lowest values of each unit."""
    found = values[np.unique(units, return_index=True)[1]]
    choose.at(found, units, values)
    return found


def _mean(values: np.ndarray, units: np.ndarray) -> np.ndarray:
    sums = np.zeros((int(units.max()) + 1, values.shape[1]))
    np.add.at(sums, units, values)
    return sums / np.bincount(units)[:, None]
