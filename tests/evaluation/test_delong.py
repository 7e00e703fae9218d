"""DeLong's variances against their definition, a resampling, and Obuchowski's for patients with several images."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from retfound_hf.errors import RetFoundError
from retfound_hf.evaluation.comparisons import _areas, auroc_interval, compare_aurocs


def by_definition(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """DeLong et al. 1988, equations 4 to 6, with the kernel over all pairs: AUROCs (K,) and covariance (K, K)."""
    wins = [
        (row[truth][:, None] > row[~truth]) + 0.5 * (row[truth][:, None] == row[~truth]) for row in scores
    ]  # fmt: skip
    areas = np.array([table.mean() for table in wins])
    over_negatives = np.cov([table.mean(axis=1) for table in wins]) / truth.sum()
    over_positives = np.cov([table.mean(axis=0) for table in wins]) / (~truth).sum()
    return areas, np.atleast_2d(over_negatives + over_positives)


@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_definition(ties):
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.3
    scores = rng.normal(size=(2, 60)) + truth
    scores = scores.round() if ties else scores
    areas, covariance, count = _areas(truth, list(scores), None)
    expected = by_definition(truth, scores)
    assert areas == pytest.approx(expected[0])
    assert areas == pytest.approx([roc_auc_score(truth, row) for row in scores])
    assert covariance == pytest.approx(expected[1])
    assert count == 60


def test_by_hand():
    # Positives 3 and 1, negatives 2 and 0: 3 beats both, 1 beats one of two. AUROC 3/4. Placements of positives 1 and
    # 1/2 and of negatives 1/2 and 1, each of variance 1/8: 1/16 + 1/16.
    areas, covariance, _ = _areas([True, True, False, False], [[3, 1, 2, 0]], None)
    assert areas == pytest.approx([0.75]) and covariance == pytest.approx(np.array([[0.125]]))
    found = auroc_interval([True, True, False, False], [3, 1, 2, 0])
    half = 1.959964 * 0.125**0.5 / (0.75 * 0.25)
    logits = np.log(3) + np.array([-half, half])
    assert (found.low, found.high) == pytest.approx(tuple(1 / (1 + np.exp(-logits))))


def test_each_row_its_own_patient_changes_nothing():
    rng = np.random.default_rng(1)
    truth, scores = rng.random(50) < 0.5, rng.normal(size=50)
    alone, named = auroc_interval(truth, scores), auroc_interval(truth, scores, np.arange(50))
    # Obuchowski's sums then hold no pair of rows, but for her factor n / (n - 1).
    assert (named.low, named.high) == pytest.approx((alone.low, alone.high))
    assert "Obuchowski" in named.method


def test_copies_add_no_information():
    rng = np.random.default_rng(1)
    truth, scores = rng.random(50) < 0.5, rng.normal(size=50)
    many = np.repeat(np.arange(50), 8)
    alone, clustered = auroc_interval(truth, scores), auroc_interval(truth[many], scores[many], many)
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))
    assert clustered.n == 50


def test_the_test_of_two_models():
    rng = np.random.default_rng(2)
    truth = rng.random(200) < 0.4
    first, second = truth * 2 + rng.normal(size=200), truth * 0.5 + rng.normal(size=200)
    found = compare_aurocs(truth, first, second)
    areas, covariance = by_definition(truth, np.array([first, second]))
    error = (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) ** 0.5
    assert found.difference.value == pytest.approx(areas[0] - areas[1])
    assert found.difference.high - found.difference.low == pytest.approx(2 * 1.959964 * error)
    assert found.p_value < 1e-4
    assert compare_aurocs(truth, second, first).difference.value == pytest.approx(-found.difference.value)
    equal = compare_aurocs(truth, first, 3 * first + 1)  # one ranking
    assert equal.difference.value == 0 and equal.p_value is None


def test_where_nothing_can_be_said():
    assert auroc_interval([True, True], [0.1, 0.2]).value is None
    perfect = auroc_interval([True, True, False, False], [4, 3, 2, 1])
    assert perfect.value == 1 and perfect.interval is None
    assert compare_aurocs([True, True], [0.1, 0.2], [0.1, 0.2]).p_value is None
    with pytest.raises(RetFoundError, match="must both be"):
        auroc_interval([True, False], [0.1])
    with pytest.raises(RetFoundError, match="NaN"):
        auroc_interval([True, False], [0.1, float("nan")])
