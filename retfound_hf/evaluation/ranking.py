"""AUROC and AUPRC of each class against the rest."""

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score


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
