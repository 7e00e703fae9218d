"""Metrics of a classifier or regressor as one flat dictionary, `None` for what the labels leave undefined."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sklearn_metrics

from .calibration import confidence_and_correctness, expected_calibration_error
from .inputs import ProblemType, check_classification, check_problem_type
from .ranking import defined_classes, mean_of_defined, one_vs_rest
from .regression import regression_metrics

__all__ = ["classification_metrics", "compute_metrics", "regression_metrics"]

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
    _warn_undefined(truth, class_names)
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


def _warn_undefined(truth: np.ndarray, class_names: Sequence[str]) -> None:
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
