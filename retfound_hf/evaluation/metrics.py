"""Metrics of classifiers and regressors, plain and for many reweighted copies at once."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.special import xlogy
from sklearn import metrics as sklearn_metrics
from sklearn.metrics import average_precision_score, roc_auc_score

from ..errors import RetFoundError
from .calibration import BINS, bin_of, confidence_and_correctness, expected_calibration_error
from .validation import ProblemType, check_classification, check_problem_type, check_regression


def defined_classes(truth: np.ndarray) -> np.ndarray:
    """bool (C,): which columns of `truth`, bool (N, C), hold both outcomes, without which no curve exists."""
    return truth.any(axis=0) & ~truth.all(axis=0)


def one_vs_rest(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC and under the precision-recall curve, per class.

    The area under the precision-recall curve is the average precision, the step-wise sum without interpolation, of
    each column of the one-hot labels: the same as in the official code (RETFound_MAE, `engine_finetune.py`).

    Args:
        truth: bool (N, C), whether row n is of class c.
        scores: float (N, C), higher for more likely; only their order within a column counts.

    Returns:
        auroc, auprc: float64 (C,), NaN for a class without both outcomes.
    """
    auroc, auprc = np.full((2, truth.shape[1]), np.nan)
    for column in np.flatnonzero(defined_classes(truth)):
        auroc[column] = roc_auc_score(truth[:, column], scores[:, column])
        auprc[column] = average_precision_score(truth[:, column], scores[:, column])
    return auroc, auprc


def mean_of_defined(values: np.ndarray) -> float | None:
    """Mean of the entries that are not NaN; None when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else None


def regression_metrics(
    labels: Any, predictions: Any, target_names: Sequence[str] | None = None
) -> dict[str, float | None]:
    """Errors and correlations, in the units of the labels.

    Args:
        labels, predictions: float (N,) or (N, T).
        target_names: T names; `target_0`... when None.

    Returns:
        `mae`, `mse`, `rmse`, `r2` (1 - residual / total sum of squares), `pearson`, `spearman` and `loss` (= `mse`);
        with several targets the means over them, and every metric per target as `mae/<target>`... None, with one
        warning, for `r2` and correlations of a target (or, for correlations, of a prediction) that does not vary.

    Raises:
        RetFoundError: shapes that do not fit, or values that are not finite.
    """
    labels, predictions = check_regression(labels, predictions)
    targets = labels.shape[1]
    names = list(target_names) if target_names is not None else [f"target_{index}" for index in range(targets)]
    if len(names) != targets:
        raise RetFoundError(f"{len(names)} target names {names} for {targets} targets; give one per target")
    errors = predictions - labels
    squares = (errors**2).mean(axis=0)
    per_target = {
        "mae": np.abs(errors).mean(axis=0),
        "mse": squares,
        "rmse": np.sqrt(squares),
        "r2": 1 - squares / np.where(_varies(labels), labels.var(axis=0), np.nan),
        "pearson": _correlation(labels, predictions),
        "spearman": _correlation(_ranks(labels), _ranks(predictions)),
    }
    _warn_undefined(per_target, names)
    values = {name: mean_of_defined(value) for name, value in per_target.items()}
    values["loss"] = values["mse"]
    if targets > 1:
        for name, value in per_target.items():
            values |= {f"{name}/{target}": mean_of_defined(value[[i]]) for i, target in enumerate(names)}
    return values


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Pearson correlation of the columns, (T,), NaN where one does not vary."""
    defined = _varies(first) & _varies(second)
    first, second = first - first.mean(axis=0), second - second.mean(axis=0)
    norms = np.sqrt((first**2).sum(axis=0)) * np.sqrt((second**2).sum(axis=0))
    return np.clip((first * second).sum(axis=0) / np.where(defined, norms, np.nan), -1, 1)


def _ranks(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata  # ties share their mean rank, as Spearman's correlation asks

    return rankdata(values, axis=0)


def _varies(values: np.ndarray) -> np.ndarray:
    """bool (T,). Not the variance, which rounding leaves above 0 for many a constant."""
    return np.ptp(values, axis=0) > 0


def _warn_undefined(per_target: dict[str, np.ndarray], names: Sequence[str]) -> None:
    lacking = [metric for metric, values in per_target.items() if np.isnan(values).any()]
    if lacking:
        targets = [name for index, name in enumerate(names) if np.isnan(per_target["pearson"][index])]
        warnings.warn(
            f"{', '.join(lacking)} are undefined for {', '.join(targets)}: its labels or predictions do not vary",
            stacklevel=3,
        )


THRESHOLD = 0.5  # a label of a multi-label classifier is predicted from this probability on


def compute_metrics(
    problem_type: ProblemType, labels: Any, scores: Any, class_names: Sequence[str]
) -> dict[str, float | None]:
    """`classification_metrics` or `regression_metrics`, by `config.problem_type` of transformers.

    Args:
        labels: (N,) integer classes; (N, C) of 0 and 1 for multi-label; (N,) or (N, T) numbers for regression.
        scores: (N, C) softmax or sigmoid probabilities; (N,) or (N, T) predictions for regression.
        class_names: names of the C classes or T targets.
    """
    check_problem_type(problem_type)
    if problem_type == "regression":
        return regression_metrics(labels, scores, class_names)
    return classification_metrics(labels, scores, class_names, problem_type)


def classification_metrics(
    labels: Any,
    probabilities: Any,
    class_names: Sequence[str],
    problem_type: ProblemType = "single_label_classification",
) -> dict[str, float | None]:
    """Every metric of a classifier.

    `auroc`, `auprc`: per class against the rest, then averaged (RETFound, Zhou et al. 2023, Methods); both classes of
    a two-class task count, which for AUROC equals the usual figure. `f1_macro`, `precision_macro`, `recall_macro` and
    `jaccard` average over the classes that occur in labels or predictions, with 0 for 0/0. `balanced_accuracy` is the
    mean recall of the classes in the labels. `quadratic_kappa` takes the classes as grades in their order.
    `hamming` of single-label predictions is 1 - accuracy (that of their one-hot code is 2/C times as much).
    `ece`: see `calibration`. `loss` is the mean negative log-likelihood in nats. `brier` is the mean over rows of the
    squared differences summed over the classes, halved for two classes, as scikit-learn's `brier_score_loss` does.

    Multi-label predictions are the labels with a probability of 0.5 or more. `accuracy` then asks for all labels of a
    row; balanced accuracy, kappa and mcc are computed per label and averaged, likewise `brier` and `loss`.

    Args:
        labels: integer (N,), or (N, C) of 0 and 1 for multi-label.
        probabilities: float (N, C), softmax, or sigmoid for multi-label.
        class_names: C names.

    Returns:
        Flat dictionary with `auroc/<class>` and `auprc/<class>` at its end. A metric is None where the labels leave it
        undefined (a class without examples of both kinds); one warning then names the classes.

    Raises:
        RetFoundError: see `inputs.check_classification`.
    """
    labels, probabilities, truth = check_classification(labels, probabilities, class_names, problem_type)
    single = problem_type == "single_label_classification"
    _metrics_warn_undefined(truth, class_names)
    auroc, auprc = one_vs_rest(truth, probabilities)
    hard = _single_label if single else _multi_label
    values = {
        "auroc": mean_of_defined(auroc),
        "auprc": mean_of_defined(auprc),
        **hard(labels, probabilities),
        "ece": expected_calibration_error(*confidence_and_correctness(truth, probabilities, single)),
        "brier": _brier(truth, probabilities, single),
        "loss": _log_loss(labels, probabilities, single),
    }
    for name, per_class in (("auroc", auroc), ("auprc", auprc)):
        values |= {f"{name}/{label}": value for label, value in zip(class_names, per_class, strict=True)}
    return {name: None if value is None or np.isnan(value) else float(value) for name, value in values.items()}


def _single_label(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    predicted = probabilities.argmax(axis=1)
    classes = np.arange(probabilities.shape[1])
    present = np.unique(labels)
    # With one class in the labels, agreement beyond chance is 0/0.
    several = len(present) > 1
    kappa = sklearn_metrics.cohen_kappa_score
    return {
        "accuracy": sklearn_metrics.accuracy_score(labels, predicted),
        "balanced_accuracy": sklearn_metrics.recall_score(labels, predicted, labels=present, average="macro"),
        **_macro(labels, predicted, np.union1d(labels, predicted)),
        "kappa": kappa(labels, predicted, labels=classes) if several else None,
        "quadratic_kappa": kappa(labels, predicted, labels=classes, weights="quadratic") if several else None,
        "mcc": sklearn_metrics.matthews_corrcoef(labels, predicted) if several else None,
        "hamming": sklearn_metrics.hamming_loss(labels, predicted),
    }


def _multi_label(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float | None]:
    predicted = (probabilities >= THRESHOLD).astype(np.int64)
    columns = np.flatnonzero(defined_classes(labels.astype(bool)))

    def mean_over_labels(metric: Any) -> float | None:
        return mean_of_defined(np.array([metric(labels[:, column], predicted[:, column]) for column in columns]))

    kappa = mean_over_labels(sklearn_metrics.cohen_kappa_score)
    return {
        "accuracy": (labels == predicted).all(axis=1).mean(),
        "balanced_accuracy": mean_over_labels(sklearn_metrics.balanced_accuracy_score),
        **_macro(labels, predicted, np.flatnonzero((labels | predicted).any(axis=0))),
        "kappa": kappa,
        "quadratic_kappa": kappa,  # two grades have one distance
        "mcc": mean_over_labels(sklearn_metrics.matthews_corrcoef),
        "hamming": (labels != predicted).mean(),
    }


def _macro(labels: np.ndarray, predicted: np.ndarray, classes: np.ndarray) -> dict[str, float | None]:
    names = ("f1_macro", "precision_macro", "recall_macro", "jaccard")
    if not len(classes):
        return dict.fromkeys(names)
    if labels.ndim == 2:  # scikit-learn takes a lone column for a two-class task
        labels, predicted = labels[:, classes], predicted[:, classes]
        if len(classes) == 1:
            labels, predicted, classes = labels[:, 0], predicted[:, 0], np.array([1])
        else:
            classes = np.arange(len(classes))
    options = {"labels": classes, "average": "macro", "zero_division": 0}
    precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(labels, predicted, **options)
    jaccard = sklearn_metrics.jaccard_score(labels, predicted, **options)
    return dict(zip(names, (f1, precision, recall, jaccard), strict=True))


def _brier(truth: np.ndarray, probabilities: np.ndarray, single: bool) -> float:
    squares = (probabilities - truth) ** 2
    # Halved for two classes, the sum is the square of the one probability that matters.
    return float(squares.sum(axis=1).mean() / (2 if truth.shape[1] == 2 else 1)) if single else float(squares.mean())


def _log_loss(labels: np.ndarray, probabilities: np.ndarray, single: bool) -> float:
    if single:
        rows = probabilities / probabilities.sum(axis=1, keepdims=True)
        return sklearn_metrics.log_loss(labels, rows, labels=np.arange(probabilities.shape[1]))
    return sklearn_metrics.log_loss(labels.ravel(), probabilities.ravel(), labels=[0, 1])


def _metrics_warn_undefined(truth: np.ndarray, class_names: Sequence[str]) -> None:
    lacking = np.flatnonzero(~defined_classes(truth))
    if not len(lacking):
        return
    names = ", ".join(class_names[index] for index in lacking[:5])
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    left = truth.shape[1] - len(lacking)
    rest = f"the averages are over the other {left}" if left else "so are their averages, kappa and mcc"
    warnings.warn(
        f"auroc and auprc are undefined for {names}{more}: among the {len(truth)} labels all or none are of "
        f"that class; {rest}",
        stacklevel=3,
    )


def weighted_areas(
    truth: np.ndarray, scores: np.ndarray, weights: np.ndarray, precision: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision, as if each row stood as often as its weight says.

    Args:
        truth: bool (N,).
        scores: float (N,), ties allowed.
        weights: float (B, N), at least 0.
        precision: compute the average precision too.

    Returns:
        auroc, auprc: float64 (B,), NaN where one outcome has no weight; auprc all NaN unless asked for.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    everyone = weights[:, order]
    positive = everyone * truth[order]
    if len(starts) < len(scores):  # rows of one score enter the curve together
        everyone, positive = (np.add.reduceat(array, starts, axis=1) for array in (everyone, positive))
    negative = everyone - positive
    below = negative.cumsum(axis=1) - negative / 2
    positives, negatives = positive.sum(axis=1), negative.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        auroc = np.einsum("bn,bn->b", positive, below) / (positives * negatives)
        if not precision:
            return auroc, np.full(len(weights), np.nan)
        # From the highest score down; where nothing was drawn yet there is no precision, and no positive to count it.
        hits, drawn = (array[:, ::-1].cumsum(axis=1) for array in (positive, everyone))
        share = np.divide(hits, drawn, out=np.zeros_like(hits), where=drawn > 0)
        auprc = np.einsum("bn,bn->b", positive[:, ::-1], share) / positives
    auprc[(positives == 0) | (negatives == 0)] = np.nan
    return auroc, auprc


def regression_statistic(
    labels: np.ndarray, predictions: np.ndarray, target_names: Sequence[str]
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from weights (B, N) to every metric of a regressor, (B,) each, NaN where undefined.

    Whole weights give what `regression.regression_metrics` gives for rows repeated as often.

    Args:
        labels, predictions: float64 (N, T).
    """
    targets = range(labels.shape[1])

    def statistic(weights: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            found = [_one_target(labels[:, target], predictions[:, target], weights) for target in targets]
        values = {name: np.mean([part[name] for part in found], axis=0) for name in found[0]}
        values["loss"] = values["mse"]
        if len(found) > 1:
            for name in found[0]:
                values |= {f"{name}/{target}": part[name] for target, part in zip(target_names, found, strict=True)}
        return values

    return statistic


def _one_target(label: np.ndarray, prediction: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    error = prediction - label
    total = weights.sum(axis=1)
    square = weights @ error**2 / total
    centred = label - label.mean()
    variance = weights @ centred**2 / total - (weights @ centred / total) ** 2
    ranks = [_weighted_regression_ranks(values, weights) for values in (label, prediction)]
    return {
        "mae": weights @ np.abs(error) / total,
        "mse": square,
        "rmse": np.sqrt(square),
        "r2": 1 - square / np.where(_weighted_regression_varies(label, weights), variance, np.nan),
        "pearson": _weighted_regression_correlation(centred, prediction - prediction.mean(), weights),
        "spearman": _weighted_regression_correlation(*ranks, weights),
    }


def _weighted_regression_correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation (B,) of values (N,) or (B, N); NaN where one does not vary."""
    total = weights.sum(axis=1, keepdims=True)
    first, second = (side - (weights * side).sum(axis=1, keepdims=True) / total for side in (first, second))
    spreads = [(weights * side**2).sum(axis=1) for side in (first, second)]
    # What is left of a constant after its mean is taken off is rounding, of the size of its largest value.
    tiny = [1e-20 * total[:, 0] * (1 + np.abs(side).max()) ** 2 for side in (first, second)]
    defined = (spreads[0] > tiny[0]) & (spreads[1] > tiny[1])
    norm = np.sqrt(spreads[0] * spreads[1])
    return np.clip((weights * first * second).sum(axis=1) / np.where(defined, norm, np.nan), -1, 1)


def _weighted_regression_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks (B, N) among rows repeated by weight; ties share their mean rank."""
    order = np.argsort(values, kind="stable")
    group = np.cumsum(np.r_[True, np.diff(values[order]) > 0]) - 1
    sizes = np.add.reduceat(weights[:, order], np.flatnonzero(np.r_[True, np.diff(group) > 0]), axis=1)
    middle = sizes.cumsum(axis=1) - (sizes - 1) / 2
    ranks = np.empty(weights.shape)
    ranks[:, order] = middle[:, group]
    return ranks


def _weighted_regression_varies(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """bool (B,): whether the rows of weight above 0 hold more than one value."""
    drawn = weights > 0
    return np.where(drawn, values, -np.inf).max(axis=1) > np.where(drawn, values, np.inf).min(axis=1)


Values = dict[str, np.ndarray]
Statistic = Callable[[np.ndarray], Values]
# Metrics that condition on the true class: their sampling does not involve how frequent the classes are.
OF_CLASSES = ("auroc", "balanced_accuracy", "recall_macro")


def classification_statistic(
    labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], single: bool, precision: bool = True
) -> Statistic:
    """A function from weights (B, N) to every metric of a classifier, (B,) each, NaN where undefined.

    Whole weights give what `metrics.classification_metrics` gives for rows repeated as often, with one exception: an
    average over classes is undefined where a class lost an outcome that the whole set has, instead of being an
    average over fewer classes.

    Args:
        labels, probabilities: as `inputs.check_classification` returns them.
        precision: compute AUPRC, which takes half of the time; NaN otherwise.
    """
    truth = labels[:, None] == np.arange(len(class_names)) if single else labels.astype(bool)
    columns = np.flatnonzero(defined_classes(truth))
    hard = (
        _weighted_metrics_single_label(truth, probabilities)
        if single
        else _weighted_metrics_multi_label(truth, probabilities, columns)
    )
    bins = _bins(truth, probabilities, single)
    cells = len(probabilities) if single else probabilities.size
    squares = (probabilities - truth) ** 2
    brier = squares.sum(axis=1) / (2 if truth.shape[1] == 2 else 1) if single else squares.mean(axis=1)
    losses = _losses(truth, probabilities, single)

    def statistic(weights: np.ndarray) -> Values:
        areas = np.full((2, truth.shape[1], len(weights)), np.nan)
        for column in columns:
            areas[:, column] = weighted_areas(truth[:, column], probabilities[:, column], weights, precision)
        with np.errstate(invalid="ignore", divide="ignore"):
            total = weights.sum(axis=1)
            values = {
                "auroc": areas[0, columns].mean(axis=0) if len(columns) else np.full(len(weights), np.nan),
                "auprc": areas[1, columns].mean(axis=0) if len(columns) else np.full(len(weights), np.nan),
                **hard(weights),
                "ece": np.abs(weights @ bins).sum(axis=1) / (total * cells / len(truth)),
                "brier": weights @ brier / total,
                "loss": weights @ losses / total,
            }
        for name, per_class in zip(("auroc", "auprc"), areas, strict=True):
            values |= {f"{name}/{label}": value for label, value in zip(class_names, per_class, strict=True)}
        return values

    return statistic


def _bins(truth: np.ndarray, probabilities: np.ndarray, single: bool) -> np.ndarray:
    """float64 (N, bins): what each row adds to correct minus confident in each bin of confidence."""
    confidence, correct = confidence_and_correctness(truth, probabilities, single)
    row = np.repeat(np.arange(len(truth)), len(confidence) // len(truth))
    table = np.zeros((len(truth), BINS))
    np.add.at(table, (row, bin_of(confidence, np.linspace(0, 1, BINS + 1))), correct - confidence)
    return table


def _losses(truth: np.ndarray, probabilities: np.ndarray, single: bool) -> np.ndarray:
    """Negative log-likelihood of each row, (N,), clipped where scikit-learn's `log_loss` clips."""
    tiny = np.finfo(np.float64).eps
    if single:
        rows = probabilities / probabilities.sum(axis=1, keepdims=True)
        return -np.log(np.clip(rows[truth], tiny, 1 - tiny))
    clipped = np.clip(probabilities, tiny, 1 - tiny)
    return -(xlogy(truth, clipped) + xlogy(~truth, 1 - clipped)).mean(axis=1)


def _weighted_metrics_single_label(truth: np.ndarray, probabilities: np.ndarray) -> Statistic:
    classes = truth.shape[1]
    labels, predicted = truth.argmax(axis=1), probabilities.argmax(axis=1)
    cell = csr_array((np.ones(len(labels)), (labels * classes + predicted, np.arange(len(labels)))),
                     shape=(classes**2, len(labels)))  # fmt: skip
    present = truth.any(axis=0)
    penalty = (np.arange(classes)[:, None] - np.arange(classes)) ** 2

    def statistic(weights: np.ndarray) -> Values:
        table = (cell @ weights.T).T.reshape(-1, classes, classes)
        true, said, hit = table.sum(axis=2), table.sum(axis=1), np.einsum("bcc->bc", table)
        total = true.sum(axis=1)
        accuracy = hit.sum(axis=1) / total
        chance = np.einsum("bc,bc->b", true, said) / total**2
        # One class left: agreement beyond chance is 0/0.
        several = np.where((true > 0).sum(axis=1) > 1, 1.0, np.nan)
        expected = np.einsum("bc,cd,bd->b", true, penalty, said) / total
        spreads = [total**2 - (side**2).sum(axis=1) for side in (true, said)]
        norm = np.sqrt(spreads[0] * spreads[1])
        return {
            "accuracy": accuracy,
            "balanced_accuracy": (hit / true)[:, present].mean(axis=1),
            **_weighted_metrics_macro(hit, true, said),
            "kappa": several * (accuracy - chance) / (1 - chance),
            "quadratic_kappa": several * (1 - np.einsum("bcd,cd->b", table, penalty) / expected),
            "mcc": several * _ratio(total * hit.sum(axis=1) - np.einsum("bc,bc->b", true, said), norm),
            "hamming": 1 - accuracy,
        }

    return statistic


def _weighted_metrics_multi_label(truth: np.ndarray, probabilities: np.ndarray, columns: np.ndarray) -> Statistic:
    predicted = probabilities >= THRESHOLD
    same = truth == predicted
    sides = [array.astype(np.float64) for array in (truth & predicted, truth, predicted)]

    def statistic(weights: np.ndarray) -> Values:
        total = weights.sum(axis=1)
        hit, true, said = (weights @ side for side in sides)
        overall = _weighted_metrics_macro(hit, true, said)
        hit, true, said, every = hit[:, columns], true[:, columns], said[:, columns], total[:, None]
        wrong = said - hit
        specificity = 1 - wrong / (every - true)
        agreed = (every - true - wrong + hit) / every
        chance = (true * said + (every - true) * (every - said)) / every**2
        norm = np.sqrt(true * (every - true) * said * (every - said))
        both = np.where((true > 0) & (true < every), 1.0, np.nan)

        def mean(values: np.ndarray) -> np.ndarray:
            return (both * values).mean(axis=1) if len(columns) else np.full(len(weights), np.nan)

        kappa = mean((agreed - chance) / (1 - chance))
        return {
            "accuracy": weights @ same.all(axis=1) / total,
            "balanced_accuracy": mean((hit / true + specificity) / 2),
            **overall,
            "kappa": kappa,
            "quadratic_kappa": kappa,
            "mcc": mean(_ratio(every * hit - true * said, norm)),
            "hamming": 1 - weights @ same.mean(axis=1) / total,
        }

    return statistic


def _weighted_metrics_macro(hit: np.ndarray, true: np.ndarray, said: np.ndarray) -> Values:
    """Averages (B,) over the classes that occur in labels or predictions, with 0 for 0/0; arguments (B, C)."""
    occurs = np.where(true + said > 0, 1.0, np.nan)
    parts = {
        "f1_macro": _ratio(2 * hit, true + said),
        "precision_macro": _ratio(hit, said),
        "recall_macro": _ratio(hit, true),
        "jaccard": _ratio(hit, true + said - hit),
    }
    count = (occurs == 1).sum(axis=1)
    return {name: np.nansum(occurs * value, axis=1) / count for name, value in parts.items()}


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=below > 0)
