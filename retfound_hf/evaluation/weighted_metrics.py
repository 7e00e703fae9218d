"""`metrics.compute_metrics` of many reweighted copies of one set at once, which is what a bootstrap needs.

scikit-learn takes one vector of weights a call, and would need minutes for a thousand resamples.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.special import xlogy

from .calibration import BINS, bin_of, confidence_and_correctness
from .metrics import THRESHOLD
from .ranking import defined_classes
from .weighted_areas import weighted_areas
from .weighted_regression import regression_statistic

Values = dict[str, np.ndarray]
Statistic = Callable[[np.ndarray], Values]
# Metrics that condition on the true class: their sampling does not involve how frequent the classes are.
OF_CLASSES = ("auroc", "balanced_accuracy", "recall_macro")

__all__ = ["OF_CLASSES", "Statistic", "Values", "classification_statistic", "regression_statistic"]


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
    hard = _single_label(truth, probabilities) if single else _multi_label(truth, probabilities, columns)
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


def _single_label(truth: np.ndarray, probabilities: np.ndarray) -> Statistic:
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
            **_macro(hit, true, said),
            "kappa": several * (accuracy - chance) / (1 - chance),
            "quadratic_kappa": several * (1 - np.einsum("bcd,cd->b", table, penalty) / expected),
            "mcc": several * _ratio(total * hit.sum(axis=1) - np.einsum("bc,bc->b", true, said), norm),
            "hamming": 1 - accuracy,
        }

    return statistic


def _multi_label(truth: np.ndarray, probabilities: np.ndarray, columns: np.ndarray) -> Statistic:
    predicted = probabilities >= THRESHOLD
    same = truth == predicted
    sides = [array.astype(np.float64) for array in (truth & predicted, truth, predicted)]

    def statistic(weights: np.ndarray) -> Values:
        total = weights.sum(axis=1)
        hit, true, said = (weights @ side for side in sides)
        overall = _macro(hit, true, said)
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


def _macro(hit: np.ndarray, true: np.ndarray, said: np.ndarray) -> Values:
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
