"""Checks and folds of the linear probe."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.model_selection import KFold, StratifiedKFold

from ..runs.errors import RetFoundError
from .inputs import check_problem_type

FOLDS = 5


def check_features(name: str, features: Any, width: int | None = None) -> np.ndarray:
    """Features as float64 (N, D): in float32 the solver stops short of the optimum."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.size or (width is not None and features.shape[1] != width):
        raise RetFoundError(f"{name} have shape {features.shape}; accepted: (N, {width or 'D'}) with N > 0")
    bad = ~np.isfinite(features).all(axis=1)
    if bad.any():
        raise RetFoundError(f"{name} hold NaN or infinity in {bad.sum()} of {len(bad)} rows; leave those images out")
    return features


def check_targets(name: str, targets: Any, rows: int, problem_type: str) -> np.ndarray:
    """Targets as int64 (N,), int64 (N, C) of 0 and 1, or float64 (N, T)."""
    check_problem_type(problem_type)
    targets = np.asarray(targets, np.float64)
    if problem_type == "regression" and targets.ndim == 1:
        targets = targets[:, None]
    dimensions = 1 if problem_type == "single_label_classification" else 2
    if targets.ndim != dimensions or len(targets) != rows:
        shape = "(N,)" if dimensions == 1 else "(N, C)"
        raise RetFoundError(f"{name} have shape {targets.shape}; {problem_type} takes {shape} with N = {rows}")
    if not np.isfinite(targets).all():
        raise RetFoundError(f"{name} hold NaN or infinity; leave those images out")
    if problem_type == "regression":
        return targets
    bad = (targets != np.floor(targets)) | (targets < 0) | ((dimensions == 2) & (targets > 1))
    if bad.any():
        accepted = "0 and 1" if dimensions == 2 else "0, 1, 2, ..."
        raise RetFoundError(f"{name} hold {targets[bad][0]:g}; {problem_type} takes {accepted}")
    return targets.astype(np.int64)


def class_labels(
    targets: np.ndarray,
    val_targets: np.ndarray | None,
    problem_type: str,
    class_names: Sequence[str] | None,
    class_weights: Sequence[float] | None,
) -> list[str]:
    """The names of all classes or targets, their numbers where there are no names."""
    both = [array for array in (targets, val_targets) if array is not None]
    if problem_type == "single_label_classification":
        found = int(max(array.max() for array in both)) + 1
        fits = found <= len(class_names) if class_names is not None else True
    else:
        found = targets.shape[1]
        fits = all(array.shape[1] == (len(class_names) if class_names is not None else found) for array in both)
    if not fits:
        raise RetFoundError(f"targets hold {found} classes, class_names={list(class_names or [])}; give one per class")
    if class_names is None and class_weights is not None:
        found = max(found, len(class_weights))
    names = [str(name) for name in (class_names if class_names is not None else range(found))]
    if problem_type == "single_label_classification" and len(names) < 2:
        raise RetFoundError(f"single_label_classification needs two classes, found {len(names)}")
    if class_weights is not None and problem_type == "regression":
        raise RetFoundError("class_weights do not apply to regression; leave them out")
    if class_weights is not None and (len(class_weights) != len(names) or min(class_weights) <= 0):
        raise RetFoundError(f"class_weights={list(class_weights)}; give {len(names)} numbers above 0, one per class")
    return names


def check_present(targets: np.ndarray, problem_type: str, names: Sequence[str]) -> None:
    """Raise RetFoundError unless every class, or both values of every label, occur in the training targets."""
    if problem_type == "single_label_classification":
        absent = [name for index, name in enumerate(names) if index not in targets]
        if absent:
            raise RetFoundError(f"no training example of class {', '.join(absent)}; a head needs some of every class")
    elif problem_type == "multi_label_classification":
        constant = [name for name, column in zip(names, targets.T, strict=True) if np.ptp(column) == 0]
        if constant:
            raise RetFoundError(
                f"all or none of {len(targets)} training rows have {', '.join(constant)}; a head needs both"
            )


def folds(targets: np.ndarray, problem_type: str, names: Sequence[str], seed: int) -> list[tuple[Any, Any]]:
    """Row indices (train, held out) of each fold, stratified by class, for multi-label by each row's rarest label."""
    if problem_type == "regression":
        if len(targets) < 2:
            raise RetFoundError("cross-validation needs 2 rows; give val_features and val_targets")
        return list(KFold(min(FOLDS, len(targets)), shuffle=True, random_state=seed).split(targets))
    if problem_type == "multi_label_classification":
        counts = targets.sum(axis=0)
        groups = np.where(targets.any(axis=1), np.where(targets > 0, counts, len(targets) + 1).argmin(axis=1), -1)
    else:
        counts = np.bincount(targets, minlength=len(names))
        groups = targets
    few = [f"{names[index]} ({count})" for index, count in enumerate(counts) if count < 2]
    if few:
        raise RetFoundError(f"cross-validation needs 2 rows of {', '.join(few)}; give val_features and val_targets")
    number = min(FOLDS, int(counts.min()))
    # A group smaller than the number of folds is spread as far as it goes, without scikit-learn's remark on it.
    _, groups, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    groups[np.isin(groups, np.flatnonzero(sizes < number))] = sizes.argmax()
    return list(StratifiedKFold(number, shuffle=True, random_state=seed).split(targets, groups))
