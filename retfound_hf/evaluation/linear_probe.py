"""Linear probe: a converged, regularised linear head on fixed features."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold

from ..errors import BadArgumentError, BadDataError, join_names, require
from ..vocabulary import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from .bootstrap import patient_numbers
from .metrics import class_areas, defined_classes
from .predictions import Predictions

FOLDS = 5


def _features(name: str, features: Any, width: int | None = None) -> np.ndarray:
    """Features as float64 (N, D): in float32 the solver stops short of the optimum."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.size or (width is not None and features.shape[1] != width):
        raise BadDataError(f"{name} have shape {features.shape}; accepted: (N, {width or 'D'}) with N > 0")
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        message = f"{name} hold NaN or infinity in {bad.sum()} of {len(bad)} rows; leave those images out"
        raise BadDataError(message, rows=np.flatnonzero(bad))
    return features


def _targets(targets: Any, features: np.ndarray, problem_type: str, names: Sequence[str]) -> np.ndarray:
    """Targets as `Predictions` checks them: int64 (N,), int64 (N, C) of 0 and 1, or float64 (N, T)."""
    anything = np.full((len(features), len(names)), 1 / len(names))
    return Predictions(None, anything, targets, tuple(names), problem_type).targets


def _names(both: Sequence[Any], problem_type: str, weights: Sequence[float] | None) -> list[str]:
    """Numbers of all classes or targets, which have no names."""
    arrays = [np.asarray(targets, np.float64) for targets in both if targets is not None]
    if problem_type == SINGLE_LABEL:
        count = int(max(np.nanmax(array, initial=0) for array in arrays)) + 1
    else:
        count = arrays[0].shape[1] if arrays[0].ndim == 2 else 1
    return [str(index) for index in range(max(count, len(weights or ())))]


def _check_weights(weights: Sequence[float] | None, problem_type: str, names: Sequence[str]) -> None:
    if weights is not None and (problem_type == REGRESSION or len(weights) != len(names) or min(weights) <= 0):
        raise BadArgumentError(
            f"`class_weights` {list(weights)} do not fit; give {len(names)} numbers above 0, one per class, and none "
            "for regression", field="class_weights", value=weights,
        )  # fmt: skip


def check_present(targets: np.ndarray, problem_type: str, names: Sequence[str]) -> None:
    """Raise BadDataError unless every class, or both values of every label, occur in the training targets."""
    if problem_type == REGRESSION:
        return
    truth = targets[:, None] == np.arange(len(names)) if problem_type == SINGLE_LABEL else targets.astype(bool)
    missing = ~truth.any(axis=0) if problem_type == SINGLE_LABEL else ~defined_classes(truth)
    if missing.any():
        lacking = join_names(names[index] for index in np.flatnonzero(missing))
        raise BadDataError(
            f"a head needs training examples of every class, and of labels some with and some without; of {lacking} "
            f"the {len(targets)} rows lack them"
        )


def folds(
    targets: np.ndarray, problem_type: str, names: Sequence[str], seed: int, patients: Any = None
) -> list[tuple[Any, Any]]:
    """Row indices (train, held out) of each fold, all rows of a patient in one.

    They are stratified by class, for multi-label by each row's rarest label.
    """
    units = patient_numbers(patients, len(targets))
    patient = np.arange(int(units.max()) + 1)
    if problem_type == REGRESSION:
        if len(patient) < 2:
            raise BadDataError("cross-validation needs 2 patients; give val_features and val_targets")
        splits = KFold(min(FOLDS, len(patient)), shuffle=True, random_state=seed).split(patient)
        return [(np.flatnonzero(np.isin(units, one)), np.flatnonzero(np.isin(units, other))) for one, other in splits]
    if problem_type == MULTI_LABEL:
        rarest = np.where(targets > 0, targets.sum(axis=0), len(targets) + 1).argmin(axis=1)
        groups, truth = np.where(targets.any(axis=1), rarest, -1), targets > 0
    else:
        groups, truth = targets, targets[:, None] == np.arange(len(names))
    counts = [len(np.unique(units[column])) for column in truth.T]
    few = [f"{names[index]} ({count})" for index, count in enumerate(counts) if count < 2]
    if few:
        raise BadDataError(
            f"cross-validation needs 2 patients of {join_names(few)}; give val_features and val_targets"
        )
    number = min(FOLDS, *counts)
    # A patient is of the rarest group among the rows. A group smaller than the number of folds is spread as far as it
    # goes, without scikit-learn's remark on it.
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(sizes, kind="stable"), kind="stable")
    own = np.full(len(patient), len(sizes))
    np.minimum.at(own, units, rank[groups])
    _, own, sizes = np.unique(own, return_inverse=True, return_counts=True)
    own[np.isin(own, np.flatnonzero(sizes < number))] = sizes.argmax()
    splits = StratifiedKFold(number, shuffle=True, random_state=seed).split(patient, own)
    return [(np.flatnonzero(np.isin(units, one)), np.flatnonzero(np.isin(units, other))) for one, other in splits]


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
    features: np.ndarray, targets: np.ndarray, strengths: np.ndarray, problem_type: str, names: Sequence[str],
    class_weights: Sequence[float] | None,
) -> list[LinearFit]:  # fmt: skip
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
    if problem_type == REGRESSION:
        heads = _ridge(standard, targets, strengths)
    elif problem_type == SINGLE_LABEL:
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
        train_targets: their variance is the unit of a regression's error.

    Returns:
        auroc (S,), None where it is undefined and for regression; loss (S,): log loss, or mean squared error over the
        training variance.
    """
    if problem_type == REGRESSION:
        variance = train_targets.var(axis=0)
        loss = ((outputs - targets) ** 2 / np.where(variance > 0, variance, 1)).mean(axis=(1, 2))
        return None, loss
    if problem_type == SINGLE_LABEL:
        truth = targets[:, None] == np.arange(outputs.shape[-1])
        log_probabilities = log_softmax(outputs, axis=-1)
        loss = -log_probabilities[:, truth].mean(axis=1)
        ranked = np.exp(log_probabilities)
    else:
        truth = targets.astype(bool)
        loss = np.logaddexp(0, np.where(truth, -outputs, outputs)).mean(axis=(1, 2))
        ranked = expit(outputs)
    areas = np.array([class_areas(truth, scores) for scores in ranked])
    defined = areas[:, ~np.isnan(areas[0])]
    return (defined.mean(axis=1) if defined.size else None), loss


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
    problem_type: str,
    strengths: Sequence[float] | None = None,
    class_weights: Sequence[float] | None = None,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    patients: Any = None,
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
        patients: (N,) names whose rows lie in one fold together; None or NaN where unknown.

    Raises:
        BadDataError: shapes that do not fit, values that are not finite, a class without training examples.
        BadArgumentError: an unknown problem type, names, weights or strengths that do not fit.
    """
    require("problem_type", problem_type, PROBLEM_TYPES)
    grid = np.unique(np.asarray(STRENGTHS if strengths is None else strengths, np.float64))[::-1]
    if not len(grid) or not (np.isfinite(grid) & (grid > 0)).all():
        message = f"`strengths` {list(grid)} are not accepted; give at least one number above 0"
        raise BadArgumentError(message, field="strengths", value=strengths)
    if (val_features is None) != (val_targets is None):
        raise BadDataError("validation needs both val_features and val_targets, or neither for cross-validation")
    given = class_names is not None
    names = list(class_names) if given else _names((train_targets, val_targets), problem_type, class_weights)
    _check_weights(class_weights, problem_type, names)
    features = _features("train_features", train_features)
    targets = _targets(train_targets, features, problem_type, names)
    if val_features is not None:
        val_features = _features("val_features", val_features, features.shape[1])
        val_targets = _targets(val_targets, val_features, problem_type, names)
    check_present(targets, problem_type, names)
    options = (problem_type, names, class_weights)
    if val_features is None:
        splits = folds(targets, problem_type, names, seed, patients)
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
    path = [(float(strength), float(score)) for strength, score in zip(grid, scores, strict=True)]
    return LinearProbe(fit.weight.astype(np.float32), fit.bias.astype(np.float32), *path[chosen], path)


def _choose(auroc: np.ndarray | None, loss: np.ndarray) -> int:
    """Index of the best of the strengths; among equals the first, which is the strongest."""
    if auroc is None:
        return int(loss.argmin())
    tied = np.flatnonzero(auroc >= auroc.max() - AUROC_TIE)
    return int(tied[loss[tied].argmin()])
