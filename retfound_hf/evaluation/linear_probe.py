"""A converged, regularised linear head on fixed features, its strength of regularisation chosen on held-out data."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..runs.errors import RetFoundError
from .inputs import ProblemType
from .linear_fits import LinearFit, fit_path, held_out_scores
from .probe_inputs import check_features, check_present, check_targets, class_labels, folds

# Penalties on the squared weights beside the summed loss, from strong to weak; on standardised features they span
# from a head that predicts the prior to one that separates the training set.
STRENGTHS = tuple(np.logspace(5, -2, 10))
# Validation AUROCs nearer than this tell nothing apart (with hundreds of images the standard error is above 0.01).
AUROC_TIE = 1e-3


@dataclass(frozen=True)
class LinearProbe:
    """A fitted head for raw features: `logits = features @ weight.T + bias`.

    Attributes:
        weight: float32 (C, D); two classes have two rows, `softmax(logits)` are the probabilities.
        bias: float32 (C,).
        strength: the chosen penalty on the squared weights, 1 / C of scikit-learn's LogisticRegression, or alpha of
            its Ridge.
        val_score: score of `strength` on held-out data, higher is better: AUROC; the negative log loss where AUROC is
            undefined; the negative mean squared error, in units of the training variance, for regression.
        path: (strength, score) of every strength tried, from strong to weak.
    """

    weight: np.ndarray
    bias: np.ndarray
    strength: float
    val_score: float
    path: list[tuple[float, float]]


def fit_linear_probe(
    train_features: np.ndarray,
    train_targets: Any,
    val_features: np.ndarray | None,
    val_targets: Any | None,
    problem_type: ProblemType,
    strengths: Sequence[float] | None = None,
    class_weights: Sequence[float] | None = None,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> LinearProbe:
    """Fit multinomial logistic regression, one logistic regression per label, or ridge regression.

    Features are standardised by the training set's mean and deviation, and the head is folded back to raw features.
    The strength with the best validation AUROC wins; AUROCs within 0.001 of the best count as ties, which the lower
    log loss decides, then the stronger penalty. (AUROC does not see the scale of the logits: alone it may prefer a
    penalty so strong that the most frequent class is always predicted.)

    Args:
        train_features: float (N, D), finite.
        train_targets: integer (N,); (N, C) of 0 and 1 for multi-label; float (N,) or (N, T) for regression.
        val_features, val_targets: the same of other images. Both None: stratified cross-validation on the training
            set instead, 5-fold, fewer where a class is smaller than that.
        problem_type: as `config.problem_type` of transformers.
        strengths: penalties to try.
        class_weights: C weights of the classes' examples; for multi-label of each label's positive examples.
        seed: of the folds; the fits themselves have no randomness.
        class_names: C names for messages; also fixes C, otherwise read from the labels.

    Raises:
        RetFoundError: shapes that do not fit, values that are not finite, a class without training examples.
    """
    grid = np.unique(np.asarray(STRENGTHS if strengths is None else strengths, np.float64))[::-1]
    if not len(grid) or not (np.isfinite(grid) & (grid > 0)).all():
        raise RetFoundError(f"strengths={list(grid)} are not accepted; give at least one number above 0")
    if (val_features is None) != (val_targets is None):
        raise RetFoundError("validation needs both val_features and val_targets, or neither for cross-validation")
    features = check_features("train_features", train_features)
    targets = check_targets("train_targets", train_targets, len(features), problem_type)
    if val_features is not None:
        val_features = check_features("val_features", val_features, features.shape[1])
        val_targets = check_targets("val_targets", val_targets, len(val_features), problem_type)
    names = class_labels(targets, val_targets, problem_type, class_names, class_weights)
    check_present(targets, problem_type, names)
    options = (problem_type, names, class_weights)
    if val_features is None:
        splits = folds(targets, problem_type, names, seed)
        outputs = np.empty((len(grid), len(features), len(names)))
        for train, held_out in splits:
            fits = fit_path(features[train], targets[train], grid, *options)
            outputs[:, held_out] = [fit.logits(features[held_out]) for fit in fits]
        auroc, loss = held_out_scores(outputs, targets, targets, problem_type)
        fits = []
    else:
        fits = fit_path(features, targets, grid, *options)
        outputs = np.stack([fit.logits(val_features) for fit in fits])
        auroc, loss = held_out_scores(outputs, val_targets, targets, problem_type)
    scores = -loss if auroc is None else auroc
    chosen = _choose(auroc, loss)
    # After cross-validation the path is followed again, on all rows, down to the chosen strength.
    fit: LinearFit = fits[chosen] if fits else fit_path(features, targets, grid[: chosen + 1], *options)[-1]
    if not fit.converged:
        warnings.warn(
            f"the linear head at strength {grid[chosen]:.3g} did not converge; leave out the weakest strengths",
            stacklevel=2,
        )
    return LinearProbe(
        weight=fit.weight.astype(np.float32),
        bias=fit.bias.astype(np.float32),
        strength=float(grid[chosen]),
        val_score=float(scores[chosen]),
        path=[(float(strength), float(score)) for strength, score in zip(grid, scores, strict=True)],
    )


def _choose(auroc: np.ndarray | None, loss: np.ndarray) -> int:
    """Index of the best of the strengths; among equals the first, which is the strongest."""
    if auroc is None:
        return int(loss.argmin())
    tied = np.flatnonzero(auroc >= auroc.max() - AUROC_TIE)
    return int(tied[loss[tied].argmin()])
