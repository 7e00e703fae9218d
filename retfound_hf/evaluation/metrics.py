"""Metrics of classifiers and regressors: one row each in `METRICS`, one implementation for plain and resampled values.

Every metric is computed for weighted rows: weights of one give the plain value, and a bootstrap's counts of draws the
value of each resample. scikit-learn, whose values these equal, takes one set of weights at a time.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array
from scipy.special import xlogy

from ..errors import require
from ..vocabulary import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .thresholds import BINS, bin_of, confidence_and_correctness

if TYPE_CHECKING:
    from .predictions import Predictions

Values = dict[str, np.ndarray]
Sides = tuple[np.ndarray, np.ndarray]
CLASSIFICATION = (SINGLE_LABEL, MULTI_LABEL)


@dataclass(frozen=True)
class ClassValue:
    """Value of one class, `<name>/<class>`, in a mean over classes where those without a value count as 0.

    Attributes:
        name, title: as those of a metric.
        function: from `WeightedRows` to values (B, C), NaN where undefined.
        sides: of a share, from `Rows` the rows that it is among and those that it counts, bool (N, C) each.
    """

    name: str
    title: str
    function: "Callable[[WeightedRows], np.ndarray]"
    sides: "Callable[[Rows], Sides] | None" = None


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: key in `metrics.json`; its interval is `<name>_ci95`.
        title: heading in tables, cards and plots.
        higher_is_better: None where neither end is good, as for a calibration slope.
        problem_types: those that it is defined for.
        function: from `WeightedRows` to values (B,), or (B, C) if `per_class`; NaN where undefined.
        per_class: also reported for each class as `<name>/<class>`; the value itself is the mean of the defined ones.
        of_class: reported for each class in their place.
        within_class: independent of class frequencies, so that resamples are drawn within classes.
        interval: its way, see `intervals.find_intervals`: "area", "share", "recall", the jackknife on the scale
            "logit", "log" or "atanh", or "bootstrap" (BCa); None where resamples are biased, as for the ECE.
        fewest: patients of the rarest side of the classes below which the jackknife's interval does not hold.
        of_predictions: the classes count in the predictions too, as a class that is never predicted has no precision.
        by_group: among the metrics of subgroups, unless others are asked for.
        indexed: in the model index of cards.
    """

    name: str
    title: str
    higher_is_better: bool | None
    problem_types: tuple[str, ...]
    function: "Callable[[WeightedRows], np.ndarray]"
    per_class: bool = False
    of_class: ClassValue | None = None
    within_class: bool = False
    interval: str | None = "bootstrap"
    fewest: int = 2
    of_predictions: bool = False
    by_group: bool = True
    indexed: bool = True


class Rows:
    """Labels and scores of N rows, and what metrics need of each row, computed once for all weights.

    Attributes:
        problem_type, class_names, class_order, targets, scores: of the predictions.
    """

    def __init__(self, predictions: "Predictions") -> None:
        self.problem_type, self.class_names = predictions.problem_type, predictions.class_names
        self.targets, self.scores, self.class_order = predictions.targets, predictions.scores, predictions.class_order
        self.single = self.problem_type == SINGLE_LABEL
        self._defined: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def truth(self) -> np.ndarray | None:
        """bool (N, C): whether a row is of a class; None for regression."""
        if self.problem_type == REGRESSION:
            return None
        return self.targets[:, None] == np.arange(self.scores.shape[1]) if self.single else self.targets.astype(bool)

    @cached_property
    def predicted(self) -> np.ndarray:
        """Predicted class (N,), or bool (N, C), the findings with a probability of at least 0.5."""
        return self.scores.argmax(axis=1) if self.single else self.scores >= THRESHOLD

    @cached_property
    def calls(self) -> np.ndarray:
        """bool (N, C): whether a row is predicted to be of a class."""
        return self.predicted[:, None] == np.arange(self.scores.shape[1]) if self.single else self.predicted

    @cached_property
    def two_sided(self) -> np.ndarray:
        """Classes that some rows have and others do not, without which no curve exists."""
        return np.flatnonzero(defined_classes(self.truth))

    @cached_property
    def cells(self) -> csr_array:
        """(C * C, N): the cell of the confusion table that a row counts in."""
        rows, classes = self.scores.shape
        index = self.targets * classes + self.predicted
        return csr_array((np.ones(rows), (index, np.arange(rows))), shape=(classes**2, rows))

    @cached_property
    def outcomes(self) -> list[np.ndarray]:
        """Three of float (N, C): true positives, labels, predictions."""
        sides = (self.truth & self.calls, self.truth, self.calls)
        return [side.astype(np.float64) for side in sides]

    @cached_property
    def gaps(self) -> np.ndarray:
        """float (N, bins): what a row adds to correct minus confident in each bin of confidence."""
        confidence, correct = confidence_and_correctness(self.truth, self.scores, self.single)
        row = np.repeat(np.arange(len(self)), len(confidence) // len(self))
        table = np.zeros((len(self), BINS))
        np.add.at(table, (row, bin_of(confidence, np.linspace(0, 1, BINS + 1))), correct - confidence)
        return table

    @cached_property
    def squares(self) -> np.ndarray:
        """(N,) squared differences of probability and outcome: summed over exclusive classes, else their mean."""
        squares = (self.scores - self.truth) ** 2
        # Halved for two classes, the sum is the square of the one probability that matters.
        return squares.sum(axis=1) / (2 if squares.shape[1] == 2 else 1) if self.single else squares.mean(axis=1)

    @cached_property
    def losses(self) -> np.ndarray:
        """(N,) negative log-likelihood, clipped where scikit-learn's `log_loss` clips."""
        tiny = np.finfo(np.float64).eps
        if self.single:
            scores = self.scores / self.scores.sum(axis=1, keepdims=True)
            return -np.log(np.clip(scores[self.truth], tiny, 1 - tiny))
        clipped = np.clip(self.scores, tiny, 1 - tiny)
        return -(xlogy(self.truth, clipped) + xlogy(~self.truth, 1 - clipped)).mean(axis=1)

    def defined(self, metric: Metric) -> np.ndarray:
        """bool (C,): the classes or targets for which the whole set has a value of a `per_class` metric."""
        if metric.name not in self._defined:
            self._defined[metric.name] = ~np.isnan(WeightedRows(self, np.ones((1, len(self)))).table(metric)[0])
        return self._defined[metric.name]


class WeightedRows:
    """Rows under B sets of weights, and what several metrics need of them, computed once by whoever asks first.

    Args:
        rows: labels and scores.
        weights: float (B, N), at least 0; all ones for the plain value, counts of draws for a bootstrap.
    """

    def __init__(self, rows: Rows, weights: np.ndarray) -> None:
        self.rows, self.weights, self.total = rows, weights, weights.sum(axis=1)
        self._tables: dict[Metric | ClassValue, np.ndarray] = {}

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Weighted mean (B,) of values (N,)."""
        return self.weights @ values / self.total

    @cached_property
    def confusion(self) -> np.ndarray:
        """Confusion tables of exclusive classes, (B, C, C): true class by predicted class."""
        classes = self.rows.scores.shape[1]
        return (self.rows.cells @ self.weights.T).T.reshape(-1, classes, classes)

    @cached_property
    def counts(self) -> tuple[np.ndarray, ...]:
        """True positives, positives and predicted positives of each class, (B, C) each."""
        if self.rows.single:
            return np.einsum("bcc->bc", self.confusion), self.confusion.sum(axis=2), self.confusion.sum(axis=1)
        return tuple(self.weights @ side for side in self.rows.outcomes)

    @cached_property
    def findings(self) -> tuple[np.ndarray, ...]:
        """`counts` of the two-sided labels of a multi-label classifier, and the total (B, 1)."""
        return *(side[:, self.rows.two_sided] for side in self.counts), self.total[:, None]

    def mean_of_findings(self, values: np.ndarray) -> np.ndarray:
        """Mean (B,) of values (B, two-sided labels), undefined where a label lost one of its sides."""
        _, true, _, every = self.findings
        if not true.shape[1]:
            return np.full(len(self.total), np.nan)
        return (np.where((true > 0) & (true < every), 1.0, np.nan) * values).mean(axis=1)

    def areas(self, precision: bool) -> np.ndarray:
        """AUROC of each class against the rest, (B, C), or with `precision` the average precision."""
        found = np.full((self.rows.scores.shape[1], len(self.total)), np.nan)
        for column in self.rows.two_sided:
            found[column] = weighted_area(
                self.rows.truth[:, column], self.rows.scores[:, column], self.weights, precision
            )
        return found.T

    def table(self, metric: Metric | ClassValue) -> np.ndarray:
        """Values of a metric: (B,), or (B, C) if it is given per class."""
        if metric not in self._tables:
            with np.errstate(invalid="ignore", divide="ignore"):
                self._tables[metric] = np.asarray(metric.function(self), np.float64)
        return self._tables[metric]

    def value(self, name: str) -> np.ndarray:
        """Values (B,) of `<metric>` or `<metric>/<class>`.

        A mean over classes is undefined where one of them has no value although it has one in the whole set, instead
        of being a mean over fewer classes.
        """
        metric, label = metric_of(name), name.partition("/")[2]
        if label:
            require("class_name", label, self.rows.class_names)
            return self.table(metric.of_class or metric)[:, self.rows.class_names.index(label)]
        table = self.table(metric)
        if not metric.per_class:
            return table
        defined = table.T[self.rows.defined(metric)]
        return defined.mean(axis=0) if len(defined) else np.full(len(table), np.nan)


def per_target(function: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]) -> Any:
    """Metric of each target of a regression, (B, T), from a function of labels (N,), predictions (N,) and weights."""

    def metric(drawn: WeightedRows) -> np.ndarray:
        pairs = zip(drawn.rows.targets.T, drawn.rows.scores.T, strict=True)
        return np.array([function(label, predicted, drawn.weights) for label, predicted in pairs]).T

    return metric


THRESHOLD = 0.5  # a label of a multi-label classifier is predicted from this probability on


def accuracy(drawn: WeightedRows) -> np.ndarray:
    """Share of rows whose predicted class, or whole set of labels, is the true one."""
    if drawn.rows.single:
        return drawn.counts[0].sum(axis=1) / drawn.total
    return drawn.mean((drawn.rows.truth == drawn.rows.predicted).all(axis=1))


def balanced_accuracy(drawn: WeightedRows) -> np.ndarray:
    """Mean recall of the classes in the labels; multi-label: mean over labels of sensitivity and specificity."""
    if drawn.rows.single:
        hit, true, _ = drawn.counts
        return (hit / true)[:, drawn.rows.truth.any(axis=0)].mean(axis=1)
    hit, true, predicted, every = drawn.findings
    return drawn.mean_of_findings((hit / true + (1 - (predicted - hit) / (every - true))) / 2)


def share(name: str, title: str, sides: Callable[[Rows], Sides]) -> ClassValue:
    """The share of `sides` of each class; undefined where it is among no row."""

    def function(drawn: WeightedRows) -> np.ndarray:
        among, counted = sides(drawn.rows)
        return (drawn.weights @ (among & counted)) / (drawn.weights @ among)

    return ClassValue(name, title, function, sides)


RECALL = share("recall", "Sensitivity (recall)", lambda rows: (rows.truth, rows.calls))
PRECISION = share("precision", "PPV (precision)", lambda rows: (rows.calls, rows.truth))
JACCARD = share("jaccard", "Jaccard index", lambda rows: (rows.truth | rows.calls, rows.truth & rows.calls))
F1 = ClassValue("f1", "F1", lambda drawn: 2 * drawn.counts[0] / (drawn.counts[1] + drawn.counts[2]))


def macro(value: ClassValue) -> Any:
    """Metric (B,): mean of a value over the classes that occur in labels or predictions, with 0 for 0/0."""

    def metric(drawn: WeightedRows) -> np.ndarray:
        occurs = drawn.counts[1] + drawn.counts[2] > 0
        return np.nansum(np.where(occurs, drawn.table(value), 0), axis=1) / occurs.sum(axis=1)

    return metric


def kappa(drawn: WeightedRows) -> np.ndarray:
    """Cohen's kappa; multi-label: mean over labels."""
    if drawn.rows.single:
        _, true, predicted = drawn.counts
        chance = np.einsum("bc,bc->b", true, predicted) / drawn.total**2
        return _if_several(true, (accuracy(drawn) - chance) / (1 - chance))
    hit, true, predicted, every = drawn.findings
    agreed = (every - true - (predicted - hit) + hit) / every
    chance = (true * predicted + (every - true) * (every - predicted)) / every**2
    return drawn.mean_of_findings((agreed - chance) / (1 - chance))


def quadratic_kappa(drawn: WeightedRows) -> np.ndarray:
    """Cohen's kappa with quadratic weights (Cohen 1968); undefined for classes whose order is not known."""
    rows = drawn.rows
    if not rows.single or len(rows.class_names) == 2:
        return drawn.table(METRICS["kappa"])  # two grades have one distance
    if rows.class_order is None:
        return np.full(len(drawn.total), np.nan)
    _, true, predicted = drawn.counts
    grades = np.array([rows.class_order.index(name) for name in rows.class_names])
    penalty = (grades[:, None] - grades) ** 2
    expected = np.einsum("bc,cd,bd->b", true, penalty, predicted) / drawn.total
    return _if_several(true, 1 - np.einsum("bcd,cd->b", drawn.confusion, penalty) / expected)


def matthews_correlation(drawn: WeightedRows) -> np.ndarray:
    """Matthews correlation coefficient of C classes (Gorodkin 2004), 0 for 0/0; multi-label: mean over labels."""
    if drawn.rows.single:
        hit, true, predicted = drawn.counts
        spreads = [drawn.total**2 - (side**2).sum(axis=1) for side in (true, predicted)]
        covariance = drawn.total * hit.sum(axis=1) - np.einsum("bc,bc->b", true, predicted)
        return _if_several(true, _ratio(covariance, np.sqrt(spreads[0] * spreads[1])))
    hit, true, predicted, every = drawn.findings
    norm = np.sqrt(true * (every - true) * predicted * (every - predicted))
    return drawn.mean_of_findings(_ratio(every * hit - true * predicted, norm))


def hamming(drawn: WeightedRows) -> np.ndarray:
    """Share of wrong labels; of exclusive classes 1 - accuracy (that of their one-hot code is 2/C times as much)."""
    if drawn.rows.single:
        return 1 - accuracy(drawn)
    return 1 - drawn.mean((drawn.rows.truth == drawn.rows.predicted).mean(axis=1))


def calibration_error(drawn: WeightedRows) -> np.ndarray:
    """Expected calibration error in bins of equal width, see `ReliabilityCurve.error`."""
    cells = 1 if drawn.rows.single else drawn.rows.scores.shape[1]
    return np.abs(drawn.weights @ drawn.rows.gaps).sum(axis=1) / (drawn.total * cells)


def loss(drawn: WeightedRows) -> np.ndarray:
    """Mean negative log-likelihood in nats, per label for multi-label; mean squared error for regression."""
    return drawn.value("mse") if drawn.rows.problem_type == REGRESSION else drawn.mean(drawn.rows.losses)


def _if_several(true: np.ndarray, values: np.ndarray) -> np.ndarray:
    """NaN where one class is left in the labels: agreement beyond chance is then 0/0."""
    return np.where((true > 0).sum(axis=1) > 1, 1.0, np.nan) * values


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)


def weighted_area(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, precision: bool = False) -> np.ndarray:
    """Area under the ROC curve, as if each row stood as often as its weight says, or the average precision.

    Average precision is the step-wise sum under the precision-recall curve, without interpolation, as in the official
    code (RETFound_MAE, `engine_finetune.py`).

    Args:
        truth: bool (N,).
        scores: float (N,), ties allowed; only their order counts.
        weights: float (B, N), at least 0.
        precision: the average precision instead, which takes longer.

    Returns:
        float64 (B,), NaN where one outcome has no weight.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    everyone = weights[:, order]
    positive = everyone * truth[order]
    if len(starts) < len(scores):  # rows of one score enter the curve together
        everyone, positive = (np.add.reduceat(array, starts, axis=1) for array in (everyone, positive))
    negative = everyone - positive
    positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        if not precision:
            below = negative.cumsum(axis=1) - negative / 2
            return np.einsum("bn,bn->b", positive, below) / (positives * negatives)
        # From the highest score down; where nothing was drawn yet there is no precision, and no positive to count it.
        hits, drawn = (array[:, ::-1].cumsum(axis=1) for array in (positive, everyone))
        share = np.divide(hits, drawn, out=np.zeros_like(hits), where=drawn > 0)
        area = np.einsum("bn,bn->b", positive[:, ::-1], share) / positives
    area[(positives == 0) | (negatives == 0)] = np.nan
    return area


def defined_classes(truth: np.ndarray) -> np.ndarray:
    """bool (C,): which columns of `truth`, bool (N, C), hold both outcomes."""
    return truth.any(axis=0) & ~truth.all(axis=0)


def class_areas(truth: np.ndarray, scores: np.ndarray, precision: bool = False) -> np.ndarray:
    """Area of each class against the rest, float64 (C,), NaN for a class without both outcomes; see `weighted_area`.

    Args:
        truth: bool (N, C).
        scores: float (N, C).
    """
    once = np.ones((1, len(truth)))
    columns = zip(truth.T, scores.T, strict=True)
    return np.array([weighted_area(*column, once, precision)[0] for column in columns])


def _mean_absolute_error(label: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ np.abs(predicted - label) / weights.sum(axis=1)


def _mean_squared_error(label: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return weights @ (predicted - label) ** 2 / weights.sum(axis=1)


def _r2(label: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 - residual / total sum of squares; NaN where the labels do not vary."""
    total, centred = weights.sum(axis=1), label - label.mean()
    variance = weights @ centred**2 / total - (weights @ centred / total) ** 2
    # Not told by the variance, which rounding leaves above 0 for many a constant.
    drawn = weights > 0
    varies = np.where(drawn, label, -np.inf).max(axis=1) > np.where(drawn, label, np.inf).min(axis=1)
    return 1 - _mean_squared_error(label, predicted, weights) / np.where(varies, variance, np.nan)


def _pearson(label: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _correlation(label - label.mean(), predicted - predicted.mean(), weights)


def _spearman(label: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return _correlation(_ranks(label, weights), _ranks(predicted, weights), weights)


def _correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation (B,) of values (N,) or (B, N); NaN where one does not vary."""
    total = weights.sum(axis=1, keepdims=True)
    first, second = (side - (weights * side).sum(axis=1, keepdims=True) / total for side in (first, second))
    spreads = [(weights * side**2).sum(axis=1) for side in (first, second)]
    # A constant less its mean leaves rounding, of the size of its largest value.
    tiny = [1e-20 * total[:, 0] * (1 + np.abs(side).max()) ** 2 for side in (first, second)]
    defined = (spreads[0] > tiny[0]) & (spreads[1] > tiny[1])
    norm = np.sqrt(spreads[0] * spreads[1])
    return np.clip((weights * first * second).sum(axis=1) / np.where(defined, norm, np.nan), -1, 1)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks (B, N) among rows repeated by weight; ties share their mean rank."""
    order = np.argsort(values, kind="stable")
    group = np.cumsum(np.r_[True, np.diff(values[order]) > 0]) - 1
    sizes = np.add.reduceat(weights[:, order], np.flatnonzero(np.r_[True, np.diff(group) > 0]), axis=1)
    middle = sizes.cumsum(axis=1) - (sizes - 1) / 2
    ranks = np.empty(weights.shape)
    ranks[:, order] = middle[:, group]
    return ranks


COUNTED: dict[str, Any] = {"fewest": 10, "of_predictions": True, "by_group": False}  # rates of what is predicted
# `auroc`, `auprc`: each class against the rest, then averaged (RETFound, Zhou et al. 2023, Methods); both classes of a
# two-class task count, which for AUROC equals the usual figure.
METRICS = {
    metric.name: metric
    for metric in (
        Metric("auroc", "AUROC", True, CLASSIFICATION, lambda drawn: drawn.areas(precision=False), per_class=True,
               within_class=True, interval="area"),
        Metric("auprc", "AUPRC", True, CLASSIFICATION, lambda drawn: drawn.areas(precision=True), per_class=True,
               interval="logit", by_group=False),
        Metric("accuracy", "Accuracy", True, CLASSIFICATION, accuracy, interval="share", by_group=False),
        Metric("balanced_accuracy", "Balanced accuracy", True, CLASSIFICATION, balanced_accuracy, within_class=True,
               interval="recall"),
        Metric("f1_macro", "F1, mean of classes", True, CLASSIFICATION, macro(F1), of_class=F1, interval="logit",
               **COUNTED),
        Metric("precision_macro", "Precision, mean of classes", True, CLASSIFICATION, macro(PRECISION),
               of_class=PRECISION, interval="logit", fewest=20, of_predictions=True, by_group=False, indexed=False),
        Metric("recall_macro", "Recall, mean of classes", True, CLASSIFICATION, macro(RECALL), of_class=RECALL,
               within_class=True, interval="recall", by_group=False, indexed=False),
        Metric("jaccard", "Jaccard index, mean of classes", True, CLASSIFICATION, macro(JACCARD), interval="logit",
               **COUNTED,
               indexed=False),
        Metric("kappa", "Cohen's kappa", True, CLASSIFICATION, kappa, interval="atanh", **COUNTED),
        Metric("quadratic_kappa", "Quadratic kappa", True, CLASSIFICATION, quadratic_kappa, interval="atanh",
               **COUNTED),
        Metric("mcc", "Matthews correlation", True, CLASSIFICATION, matthews_correlation, interval="atanh",
               **COUNTED, indexed=False),
        Metric("hamming", "Hamming loss", False, CLASSIFICATION, hamming, interval="share", by_group=False,
               indexed=False),
        Metric("ece", "ECE", False, CLASSIFICATION, calibration_error, interval=None, by_group=False, indexed=False),
        Metric("brier", "Brier score", False, CLASSIFICATION, lambda drawn: drawn.mean(drawn.rows.squares),
               interval="log", fewest=3, indexed=False),
        Metric("mae", "MAE", False, (REGRESSION,), per_target(_mean_absolute_error), per_class=True),
        Metric("mse", "MSE", False, (REGRESSION,), per_target(_mean_squared_error), per_class=True, by_group=False,
               indexed=False),
        Metric("rmse", "RMSE", False, (REGRESSION,), per_target(lambda *pair: np.sqrt(_mean_squared_error(*pair))),
               per_class=True, indexed=False),
        Metric("r2", "R²", True, (REGRESSION,), per_target(_r2), per_class=True, by_group=False),
        Metric("pearson", "Pearson's r", True, (REGRESSION,), per_target(_pearson), per_class=True, by_group=False,
               indexed=False),
        Metric("spearman", "Spearman's ρ", True, (REGRESSION,), per_target(_spearman), per_class=True, by_group=False,
               indexed=False),
        Metric("loss", "Loss", False, (*CLASSIFICATION, REGRESSION), loss, interval="log", fewest=3, by_group=False,
               indexed=False),
    )
}  # fmt: skip


def metric_of(name: str) -> Metric:
    """The row of `auroc` or `auroc/<class>`; BadArgumentError for a name without a row."""
    metric = name.split("/", 1)[0]  # a class name may hold a slash itself
    of_class = {row.of_class.name: row for row in METRICS.values() if row.of_class}
    if "/" in name and metric in of_class:
        return of_class[metric]
    require("metric", metric, METRICS)
    return METRICS[metric]


def metric_title(name: str, several: bool = False) -> str:
    """Heading of `auroc` or `auroc/<class>`; a name without a row stays as it is.

    Args:
        name: as in `metrics.json`.
        several: say of a value that is the mean of several classes or targets that it is.
    """
    metric, slash, label = name.partition("/")
    titles = {row.of_class.name: row.of_class.title for row in METRICS.values() if row.of_class and slash}
    titles |= {key: row.title for key, row in METRICS.items()}
    title = titles.get(metric, metric)
    if several and not slash and metric in METRICS and METRICS[metric].per_class:
        return f"{title}, mean of {'targets' if REGRESSION in METRICS[metric].problem_types else 'classes'}"
    return f"{title}, {label}" if label else title


def lower_is_better(name: str) -> bool:
    """True for errors and losses, by their row; False for a name without a row."""
    metric = METRICS.get(name.split("/", 1)[0])
    return metric is not None and metric.higher_is_better is False


def metrics_for(problem_type: str) -> tuple[Metric, ...]:
    """The rows that are defined for a problem type."""
    return tuple(metric for metric in METRICS.values() if problem_type in metric.problem_types)


def weighted_metrics(rows: Rows, names: Iterable[str], weights: np.ndarray) -> Values:
    """Metrics by name, (B,) each, NaN where undefined; weights (B, N)."""
    drawn = WeightedRows(rows, weights)
    return {name: drawn.value(name) for name in names}
