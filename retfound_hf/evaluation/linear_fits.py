"""Linear heads along a path of regularisation, and how well each does on held-out rows."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge

from .probe_inputs import check_present
from .ranking import mean_of_defined, one_vs_rest

# On standardised features a well-posed fit takes tens to hundreds of steps.
MAX_ITERATIONS = 3000
# Largest gradient of the mean loss at the optimum.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class LinearFit:
    """`weight` (C, D) and `bias` (C,), float64, for raw features; whether the solver ended at the optimum."""

    weight: np.ndarray
    bias: np.ndarray
    converged: bool

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(N, D) -> (N, C)."""
        return features @ self.weight.T + self.bias


def fit_path(
    features: np.ndarray,
    targets: np.ndarray,
    strengths: np.ndarray,
    problem_type: str,
    names: Sequence[str],
    class_weights: Sequence[float] | None,
) -> list[LinearFit]:
    """One fit per strength, from strong to weak, each starting where the one before ended.

    Args:
        features: float64 (N, D).
        targets: int (N,), or (N, C) of 0 and 1, or float (N, T).
        strengths: (S,), descending.
    """
    check_present(targets, problem_type, names)
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    # Below a few roundings of float32 a feature is constant, and dividing by its deviation would blow up noise.
    deviation[deviation <= 1e-6 * np.abs(mean) + np.finfo(np.float32).tiny] = 1
    standard = (features - mean) / deviation
    if problem_type == "regression":
        heads = _ridge(standard, targets, strengths)
    elif problem_type == "single_label_classification":
        heads = _softmax(standard, targets, strengths, class_weights)
    else:
        heads = _one_per_label(standard, targets, strengths, class_weights)
    return [
        LinearFit(weight / deviation, bias - (weight / deviation) @ mean, converged)
        for weight, bias, converged in heads
    ]


def held_out_scores(
    outputs: np.ndarray, targets: np.ndarray, train_targets: np.ndarray, problem_type: str
) -> tuple[np.ndarray | None, np.ndarray]:
    """AUROC and loss of each strength.

    Args:
        outputs: (S, N, C) logits, or predictions for regression.
        targets: of the held-out rows.
        train_targets: give the variance in whose units the error of a regression is told.

    Returns:
        auroc (S,), None where it is undefined and for regression; loss (S,): log loss, or mean squared error over the
        training variance.
    """
    if problem_type == "regression":
        variance = train_targets.var(axis=0)
        loss = ((outputs - targets) ** 2 / np.where(variance > 0, variance, 1)).mean(axis=(1, 2))
        return None, loss
    if problem_type == "single_label_classification":
        truth = targets[:, None] == np.arange(outputs.shape[-1])
        log_probabilities = log_softmax(outputs, axis=-1)
        loss = -log_probabilities[:, truth].mean(axis=1)
        ranked = np.exp(log_probabilities)
    else:
        truth = targets.astype(bool)
        loss = np.logaddexp(0, np.where(truth, -outputs, outputs)).mean(axis=(1, 2))
        ranked = expit(outputs)
    aurocs = [mean_of_defined(one_vs_rest(truth, scores)[0]) for scores in ranked]
    return (None if aurocs[0] is None else np.array(aurocs)), loss


def _softmax(features: np.ndarray, labels: np.ndarray, strengths: np.ndarray, weights: Any) -> list[Any]:
    class_weight = None if weights is None else dict(enumerate(weights))
    heads = _logistic(features, labels, strengths, class_weight)
    if labels.max() > 1:
        return heads
    # One logistic row w: rows -w/2 and w/2 give the same probabilities by softmax.
    return [(np.vstack([-w, w]) / 2, np.array([-b[0], b[0]]) / 2, converged) for w, b, converged in heads]


def _one_per_label(features: np.ndarray, labels: np.ndarray, strengths: np.ndarray, weights: Any) -> list[Any]:
    columns = [
        _logistic(features, column, strengths, None if weights is None else {0: 1.0, 1: weights[index]})
        for index, column in enumerate(labels.T)
    ]
    return [
        (np.vstack([w for w, _, _ in heads]), np.concatenate([b for _, b, _ in heads]), all(c for _, _, c in heads))
        for heads in zip(*columns, strict=True)
    ]


def _logistic(features: np.ndarray, labels: np.ndarray, strengths: np.ndarray, class_weight: Any) -> list[Any]:
    model = LogisticRegression(tol=TOLERANCE, max_iter=MAX_ITERATIONS, warm_start=True, class_weight=class_weight)
    heads = []
    for strength in strengths:
        model.set_params(C=1 / strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, labels)
        heads.append((model.coef_.copy(), model.intercept_.copy(), bool(model.n_iter_.max() < MAX_ITERATIONS)))
    return heads


def _ridge(features: np.ndarray, targets: np.ndarray, strengths: np.ndarray) -> list[Any]:
    heads = []
    for strength in strengths:
        model = Ridge(alpha=strength).fit(features, targets)
        heads.append((np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_), True))
    return heads
