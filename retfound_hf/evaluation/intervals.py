"""Intervals that hold with few patients of a class: of areas, shares, means over classes, and by the jackknife.

Resamples of two or three patients tell little of others. Here variances come from closed forms or the jackknife, with
several images of a patient taken together, and quantiles from Student's t where few patients carry a variance.
scripts/benchmarks/coverage.py simulates how often the intervals hold the true value.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BadDataError
from .bootstrap import CONFIDENCE, Estimate, Z, bootstrap, jackknife, patient_numbers, patients_of, rarer_side

if TYPE_CHECKING:
    from .metrics import Metric
    from .predictions import Predictions

AREA = "score interval (Newcombe 2006) at the effective number of images"
SHARE = "Agresti-Coull at the effective number of images"
MEAN = "of classes, combined (MOVER; Zou and Donner 2008)"


@dataclass(frozen=True)
class Part:
    """A number with its interval, and what each patient adds to it, from which correlations follow.

    Attributes:
        estimate: with method.
        influence: float (patients,); the sum of squares is the variance.
    """

    estimate: Estimate
    influence: np.ndarray


def student(patients: float) -> float:
    """The 97.5% quantile of Student's t for a variance that so many patients tell; infinite below two."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, patients - 1)) if patients > 1 else np.inf


def too_few(value: float | None, patients: int, found: int, needed: int, where: str = "labels") -> Estimate:
    """A number without interval, since the rarer outcome has too few patients."""
    text = f"no interval: {found} patients of the rarest side of the {where}, and {needed} are needed"
    return Estimate(value, None, None, patients, text)


def share_part(hits: Any, row: np.ndarray, count: int) -> Part:
    """A share as `share_interval` gives it; `row` (N,) has the patients of the hits, `count` are in the whole set."""
    from statsmodels.stats.proportion import proportion_confint

    hits = np.asarray(hits, np.float64)
    patients = len(np.unique(row))
    if not len(hits):
        return Part(Estimate(None, None, None, 0, SHARE), np.zeros(count))
    share = hits.mean()
    deviation = np.bincount(row, hits - share, count) / len(hits)
    effective = float(patients)
    if patients > 1 and (variance := (deviation**2).sum() * patients / (patients - 1)) > 0:
        effective = min(len(hits), share * (1 - share) / variance)
    low, high = proportion_confint(share * effective, effective, 1 - CONFIDENCE, "agresti_coull")
    return Part(Estimate(float(share), max(0.0, float(low)), min(1.0, float(high)), patients, SHARE), deviation)


def share_interval(hits: Any, patients: Any = None) -> Estimate:
    """A share of images with the 95% interval of Agresti and Coull (1998) at the effective number of images.

    That is the number of independent images with the variance that the share has between patients (the ratio
    estimator's; Kish 1965), at most the number of images; at a share of 0 or 1, which shows no variance, the number of
    patients. Wilson's interval, which lies within it, misses shares near 0 and 1 too often.

    Args:
        hits: bool (N,), or shares of several images.
        patients: (N,) names or numbers, None or NaN where unknown; None: every image is a patient.

    Returns:
        n is the number of patients. Undefined without images.
    """
    hits = np.asarray(hits, np.float64)
    row = patient_numbers(patients, len(hits))
    return share_part(hits, row, int(row.max(initial=-1)) + 1).estimate


@dataclass(frozen=True)
class Area:
    """AUROC of one classifier and what its variance is made of.

    Attributes:
        value: the AUROC.
        influence: float (patients,), of DeLong's variance over patients (Obuchowski 1997).
        images, patients: of the two outcomes.
        design: how many times the variance is that of as many independent images, from 1 to the size of the clusters.
    """

    value: float
    influence: np.ndarray
    images: tuple[int, int]
    patients: tuple[int, int]
    design: float


def area_of(truth: np.ndarray, scores: np.ndarray, row: np.ndarray, count: int) -> Area | None:
    """The area of bool `truth` (N,) and `scores` (N,); None where one outcome is absent."""
    if truth.all() or not truth.any():
        return None
    placements = _placements(truth, scores)
    value = float(placements[truth].mean())
    influence, independent, largest, patients = np.zeros(count), 0.0, 1.0, []
    for side in (truth, ~truth):
        deviations, images = placements[side] - value, int(side.sum())
        sizes = np.bincount(row[side], minlength=count)
        units = int((sizes > 0).sum())
        patients.append(units)
        largest = max(largest, float((sizes**2).sum() / images))
        if units > 1:
            influence += np.bincount(row[side], deviations, count) / images * (units / (units - 1)) ** 0.5
            independent += (deviations**2).sum() / (images - 1) / images
    variance = (influence**2).sum()
    design = float(np.clip(variance / independent, 1, largest)) if variance > 0 and independent > 0 else largest
    return Area(value, influence, (int(truth.sum()), int((~truth).sum())), (patients[0], patients[1]), design)


def _placements(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each row the share of rows of the other outcome that it is ranked rightly against; ties count half."""
    from scipy.stats import rankdata

    everyone = rankdata(scores)
    below = np.empty(len(scores))  # rows of the other outcome with a lower score, ties half
    for side in (truth, ~truth):
        below[side] = (everyone[side] - rankdata(scores[side])) / (~side).sum()
    return np.where(truth, below, 1 - below)


def area_interval(area: Area | None, count: int) -> Estimate:
    """An AUROC with Newcombe's interval (2006, part 2, method 5), widened where patients vary more than it supposes.

    The interval holds the areas that the data do not refute: the observed one is within 1.96 standard errors of them.
    The error is that at the supposed area (Hanley and McNeil 1982), for as many independent images as have DeLong's
    variance over patients. Where this variance with the quantile of Student's t (patients of the rarer outcome - 1) is
    larger at the observed area, the error is raised to it.
    """
    from scipy.optimize import brentq

    if area is None:
        return Estimate(None, None, None, count, AREA)
    rarer = min(area.patients)
    if rarer < 2:
        return too_few(area.value, count, rarer, 2)
    first, second = (images / area.design for images in area.images)
    shape = (first + second) / 2 - 1

    def error(supposed: float) -> float:
        spread = 1 + shape * ((1 - supposed) / (2 - supposed) + supposed / (1 + supposed))
        return float(np.sqrt(supposed * (1 - supposed) * spread / (first * second)))

    observed = float((area.influence**2).sum() ** 0.5) * student(rarer)
    factor = Z if not 0 < area.value < 1 else max(Z, observed / error(area.value))
    low = high = area.value
    if area.value > 0:
        low = brentq(lambda supposed: area.value - supposed - factor * error(supposed), 0, area.value - 1e-12)
    if area.value < 1:
        high = brentq(lambda supposed: supposed - area.value - factor * error(supposed), area.value + 1e-12, 1)
    return Estimate(area.value, float(low), float(high), count, AREA)


def mean_interval(value: float | None, parts: Sequence[Part], total: int, count: int) -> Estimate:
    """The mean of numbers from their intervals and correlations (MOVER; Zou and Donner 2008, Newcombe 1998).

    Args:
        value: the mean.
        parts: the numbers that vary.
        total: how many the mean is of.
        count: patients.

    Returns:
        Without interval where a part has none.
    """
    lacking = next((part.estimate for part in parts if part.estimate.interval is None), None)
    if value is None or not parts or lacking is not None:
        return Estimate(value, None, None, count, lacking.method if lacking else MEAN)
    influence = np.array([part.influence for part in parts])
    norms = np.linalg.norm(influence, axis=1)
    units = np.divide(influence, norms[:, None], out=np.zeros_like(influence), where=norms[:, None] > 0)
    correlation = units @ units.T
    np.fill_diagonal(correlation, 1)
    ends = np.array([[part.estimate.value, *part.estimate.interval] for part in parts])
    sides = ends[:, 0] - ends[:, 1], ends[:, 2] - ends[:, 0]
    below, above = (max(0.0, side @ correlation @ side) ** 0.5 / total for side in sides)
    method = f"{parts[0].estimate.method}; {MEAN}" if len(parts) > 1 else parts[0].estimate.method
    return Estimate(value, max(0.0, value - float(below)), min(1.0, value + float(above)), count, method)


SCALES = {
    "logit": (lambda values: np.log(values / (1 - values)), lambda values: 1 / (1 + np.exp(-values))),
    "log": (np.log, np.exp),
    "atanh": (np.arctanh, np.tanh),
}


def scaled_part(value: float, left_out: np.ndarray, scale: str, rarer: float, count: int) -> Part:
    """A number with the jackknife's interval over patients on another scale, where it is less skewed.

    Args:
        value: of the whole set.
        left_out: (groups,) the value without each group of patients.
        scale: a key of `SCALES`.
        rarer: patients of the rarer outcome, whose number less one are the degrees of freedom; on the scale "log" it
            is the effective number of patients that carry the variance (Kish 1965).
        count: patients.
    """
    forth, back = SCALES[scale]
    name = f"jackknife over patients, {scale} scale, t"
    with np.errstate(divide="ignore", invalid="ignore"):
        numbers = forth(np.r_[value, left_out])
    groups = len(left_out)
    if not np.isfinite(numbers).all() or np.ptp(numbers[1:]) < 1e-12:
        text = "no interval: without one patient or another it does not vary, or is at the end of its range"
        return Part(Estimate(value, None, None, count, text), np.zeros(groups))
    influence = (numbers[1:] - numbers[1:].mean()) * ((groups - 1) / groups) ** 0.5
    if scale == "log":
        rarer = float((influence**2).sum() ** 2 / (influence**4).sum())
    half = student(rarer) * (influence**2).sum() ** 0.5
    with np.errstate(over="ignore"):
        low, high = back(numbers[0] + half * np.array([-1, 1]))
    if not np.isfinite([low, high]).all():
        text = "no interval: one or two patients carry the variance"
        return Part(Estimate(value, None, None, count, text), influence)
    return Part(Estimate(value, float(low), float(high), count, name), influence)


def find_intervals(
    predictions: "Predictions", values: dict[str, float | None], resamples: int, seed: int
) -> dict[str, Estimate]:
    """Every metric of `values` with its 95% interval, by the way that its row of `METRICS` names.

    Args:
        predictions: with labels.
        values: metrics by name, None where undefined.
        resamples, seed: of the bootstrap, for metrics that have it.
    """
    from .metrics import metric_of, weighted_metrics

    row = patient_numbers(predictions.patients, len(predictions))
    count = int(row.max()) + 1
    if count < 2:
        raise BadDataError(f"an interval over patients needs at least two, and the {len(row)} rows are of one")
    known = _Known(predictions, row, count)
    found = {name: share_interval(*sides) for name, sides in predictions.shares(values)}
    kinds = {name: metric_of(name).interval for name in values if name not in found}
    if predictions.truth is None:
        kinds = {name: kind and "bootstrap" for name, kind in kinds.items()}
    for chosen, units in predictions.resampling([name for name, kind in kinds.items() if kind == "bootstrap"]):
        statistic = partial(weighted_metrics, predictions.rows, chosen)
        found |= bootstrap(statistic, {name: values[name] for name in chosen}, units, resamples, seed)
    if scaled := {name: values[name] for name, kind in kinds.items() if kind in SCALES}:
        found |= known.scaled(scaled)
    for name in kinds.keys() - found.keys():
        kind = kinds[name]
        found[name] = getattr(known, kind)(name, values[name]) if kind else predictions.without_interval(name)
    return {name: replace(found[name], value=value) for name, value in values.items()}


class _Known:
    """Parts of predictions of classes that intervals need.

    Args:
        predictions: with labels.
        row: (N,) patients.
        count: of patients.
    """

    def __init__(self, predictions: "Predictions", row: np.ndarray, count: int) -> None:
        self.rows, self.row, self.count = predictions.rows, row, count
        self.names = predictions.class_names
        self.areas: dict[int, Part] = {}

    def columns(self, name: str) -> list[int]:
        """The classes that a metric speaks of: one, or all that some rows have and others do not."""
        label = name.partition("/")[2]
        return [self.names.index(label)] if label else self.rows.two_sided.tolist()

    def rarer(self, name: str, predicted: bool) -> int:
        """Patients on the rarer side of the classes in labels, and with `predicted` in predictions too."""
        sides = [self.rows.truth, self.rows.calls] if predicted else [self.rows.truth]
        return min(rarer_side(side[:, self.columns(name)], self.row) for side in sides)

    def area(self, name: str, value: float | None) -> Estimate:
        """An AUROC, or the mean of several."""
        truth, scores = self.rows.truth, self.rows.scores
        for c in self.columns(name):
            if c not in self.areas and (one := area_of(truth[:, c], scores[:, c], self.row, self.count)) is not None:
                self.areas[c] = Part(area_interval(one, self.count), one.influence)
        parts = [self.areas[c] for c in self.columns(name) if c in self.areas]
        return mean_interval(value, parts, len(parts), self.count)

    def share(self, name: str, value: float | None) -> Estimate:
        """Right labels, or for the Hamming loss wrong ones."""
        if self.rows.single or name == "accuracy":
            right = self.rows.predicted == self.rows.targets if self.rows.single else (
                (self.rows.predicted == self.rows.truth).all(axis=1)
            )  # fmt: skip
            hits, row = right if name == "accuracy" else ~right, self.row
        else:
            hits = (self.rows.predicted != self.rows.truth).ravel()
            row = np.repeat(self.row, len(self.names))
        return share_part(hits, row, self.count).estimate

    def recall(self, name: str, value: float | None) -> Estimate:
        """Mean of recalls; of several labels in balanced accuracy those with and those without."""
        truth, called = self.rows.truth, self.rows.calls
        columns = np.flatnonzero(truth.any(axis=0))
        sides = [(truth[:, c], called[:, c]) for c in columns]
        total = len(sides)
        if name == "recall_macro":
            total = int((truth | called).any(axis=0).sum())
        elif not self.rows.single:
            columns = self.rows.two_sided
            sides = [(truth[:, c] == side, called[:, c] == side) for c in columns for side in (True, False)]
            total = len(sides)
        fewest = min((len(np.unique(self.row[among])) for among, _ in sides), default=0)
        if fewest < 2:
            return too_few(value, self.count, fewest, 2)
        parts = [share_part(hits[among], self.row[among], self.count) for among, hits in sides]
        return mean_interval(value, parts, total, self.count)

    def scaled(self, values: dict[str, float | None]) -> dict[str, Estimate]:
        """Metrics by the jackknife, on the scale of each; means over classes from the classes'."""
        from .metrics import metric_of, weighted_metrics  # whose module takes shares from here

        found: dict[str, Estimate] = {}
        of_classes = {
            name: [f"{name}/{self.names[c]}" for c in self.columns(name)]
            for name in values if metric_of(name).per_class and "/" not in name
        }  # fmt: skip
        wanted = [name for name in values if name not in of_classes]
        wanted += [name for names in of_classes.values() for name in names if name not in wanted]
        left_out = jackknife(partial(weighted_metrics, self.rows, wanted), patients_of(self.row, len(self.row)))
        whole = weighted_metrics(self.rows, wanted, np.ones((1, len(self.row))))
        parts = {name: self._scaled(name, metric_of(name), float(whole[name][0]), left_out[name]) for name in wanted}
        for name, value in values.items():
            if name in of_classes:
                chosen = [parts[one] for one in of_classes[name]]
                found[name] = mean_interval(value, chosen, len(chosen), self.count)
            else:
                found[name] = parts[name].estimate
        return found

    def _scaled(self, name: str, metric: "Metric", value: float, left_out: np.ndarray) -> Part:
        nothing = np.zeros(len(left_out))
        if np.isnan(value):
            return Part(Estimate(None, None, None, self.count, "undefined"), nothing)
        rarer = self.rarer(name, metric.of_predictions)
        if rarer < metric.fewest:
            where = "labels and predictions" if metric.of_predictions else "labels"
            return Part(too_few(value, self.count, rarer, metric.fewest, where), nothing)
        return scaled_part(value, left_out, metric.interval, rarer, self.count)
