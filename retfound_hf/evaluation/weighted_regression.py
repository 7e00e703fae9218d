"""`regression.regression_metrics` of many reweighted copies of one set at once."""

from collections.abc import Callable, Sequence

import numpy as np


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
    ranks = [_ranks(values, weights) for values in (label, prediction)]
    return {
        "mae": weights @ np.abs(error) / total,
        "mse": square,
        "rmse": np.sqrt(square),
        "r2": 1 - square / np.where(_varies(label, weights), variance, np.nan),
        "pearson": _correlation(centred, prediction - prediction.mean(), weights),
        "spearman": _correlation(*ranks, weights),
    }


def _correlation(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation (B,) of values (N,) or (B, N); NaN where one does not vary."""
    total = weights.sum(axis=1, keepdims=True)
    first, second = (side - (weights * side).sum(axis=1, keepdims=True) / total for side in (first, second))
    spreads = [(weights * side**2).sum(axis=1) for side in (first, second)]
    # What is left of a constant after its mean is taken off is rounding, of the size of its largest value.
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


def _varies(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """bool (B,): whether the rows of weight above 0 hold more than one value."""
    drawn = weights > 0
    return np.where(drawn, values, -np.inf).max(axis=1) > np.where(drawn, values, np.inf).min(axis=1)
