"""AUROC and AUPRC of many reweighted copies of one set: the scores are sorted once for all of them."""

import numpy as np


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
