"""Comparisons: DeLong against its definition, the paired bootstrap, tests over seeds, Holm's correction."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from retfound_hf.errors import BadDataError
from retfound_hf.evaluation.bootstrap import Estimate
from retfound_hf.evaluation.comparisons import (
    _areas,
    auroc_interval,
    compare_aurocs,
    compare_metrics,
    compare_seeds,
    holm,
    over_seeds,
)  # fmt: skip
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.vocabulary import SINGLE_LABEL


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
    areas, count = _areas(truth, list(scores), None)
    expected = by_definition(truth, scores)
    values, influence = [area.value for area in areas], np.array([area.influence for area in areas])
    assert values == pytest.approx(expected[0])
    assert values == pytest.approx([roc_auc_score(truth, row) for row in scores])
    assert influence @ influence.T == pytest.approx(expected[1])
    assert count == 60


def test_by_hand():
    # Positives 3 and 1, negatives 2 and 0: 3 beats both, 1 beats one of two. AUROC 3/4. Placements of positives 1 and
    # 1/2 and of negatives 1/2 and 1, each of variance 1/8: 1/16 + 1/16.
    (area,), _ = _areas([True, True, False, False], [[3, 1, 2, 0]], None)
    assert area.value == 0.75 and area.influence @ area.influence == pytest.approx(0.125) and area.design == 1
    # The error of Hanley and McNeil at 3/4 is that of DeLong's variance or less, and one patient tells it: t on one
    # degree of freedom. The ends solve |3/4 - a| = factor * error(a).
    found = auroc_interval([True, True, False, False], [3, 1, 2, 0])

    def error(a):
        return (a * (1 - a) * (1 + (1 - a) / (2 - a) + a / (1 + a)) / 4) ** 0.5

    factor = 12.7062 * 0.125**0.5 / error(0.75)
    for end in (found.low, found.high):
        assert abs(0.75 - end) == pytest.approx(factor * error(end), rel=1e-4)


def test_each_row_its_own_patient_changes_nothing():
    rng = np.random.default_rng(1)
    truth, scores = rng.random(50) < 0.5, rng.normal(size=50)
    alone, named = auroc_interval(truth, scores), auroc_interval(truth, scores, np.arange(50))
    assert (named.low, named.high) == pytest.approx((alone.low, alone.high))


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
    half = t.ppf(0.975, truth.sum() - 1) * error
    assert found.difference.high - found.difference.low == pytest.approx(2 * half)
    assert found.p_value < 1e-4
    assert compare_aurocs(truth, second, first).difference.value == pytest.approx(-found.difference.value)
    equal = compare_aurocs(truth, first, 3 * first + 1)  # one ranking
    assert equal.difference.value == 0 and equal.p_value is None


def test_where_nothing_can_be_said():
    assert auroc_interval([True, True], [0.1, 0.2]).value is None
    alone = auroc_interval([True, False, False], [0.3, 0.2, 0.5])
    assert alone.value == 0.5 and alone.interval is None and "1 patients" in alone.method
    # A perfect ranking of few patients says little: the lower end is where its variance would still allow it.
    perfect, better = (auroc_interval([True] * n + [False] * n, range(2 * n, 0, -1)) for n in (2, 20))
    assert perfect.value == perfect.high == 1 and 0.3 < perfect.low < 0.5 < 0.8 < better.low
    assert compare_aurocs([True, True], [0.1, 0.2], [0.1, 0.2]).p_value is None
    for scores in ([0.1], [0.1, float("nan")]):
        with pytest.raises(BadDataError):
            auroc_interval([True, False], scores)


def test_a_better_model_is_told_from_a_worse_one_and_an_equal_one_is_not():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=300)
    good, fair = (
        Predictions(None, np.c_[1 - expit(x), expit(x)], labels, ["a", "b"], SINGLE_LABEL, np.arange(300) // 2)
        for x in (labels * shift + rng.normal(size=300) for shift in (2.0, 1.0))
    )
    found = compare_metrics(good, fair)
    assert found["auroc"].p_value < 0.01 and found["auroc"].difference.low > 0
    assert found["auroc"].difference.value == pytest.approx(good.metrics()["auroc"] - fair.metrics()["auroc"])
    assert found["brier"].difference.high < 0
    assert found["ece"].difference.value is not None and found["ece"].difference.interval is None
    back = compare_metrics(fair, good)
    assert back["auroc"].difference.low == pytest.approx(-found["auroc"].difference.high)
    same = compare_metrics(good, good)["auroc"]
    assert same.p_value is None and same.difference.value == 0
    with pytest.raises(BadDataError):
        compare_metrics(good, fair.select(np.arange(299)))


@pytest.mark.parametrize(
    ("as_paper", "quantile", "text"),
    [(False, 2.776445, "0.800 (0.780 to 0.820)"), (True, 1.96, "0.800 (0.786 to 0.814)")],
)
def test_intervals_over_seeds_by_hand(as_paper, quantile, text):
    # Mean 0.8; squares of the deviations sum to 0.0010, SD = sqrt(0.0010 / 4), SE = SD / sqrt(5).
    found = over_seeds([0.78, 0.79, 0.8, 0.81, 0.82], as_paper)
    half = quantile * (0.001 / 4) ** 0.5 / 5**0.5
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.8 - half, 0.8 + half), abs=1e-5)
    assert found.n == 5 and str(found) == text


def test_few_or_undefined_seeds():
    assert over_seeds([0.7]) == Estimate(0.7, None, None, 1, "single seed")
    assert over_seeds([]).value is None
    assert over_seeds([0.7, None]).value is None
    assert str(over_seeds([0.7, None])) == "undefined"
    assert str(Estimate(-0.1, -0.2, 0.0, 3, "x")) == "−0.100 (−0.200 to 0.000)"


def test_t_test_by_hand():
    # Means 2 and 5, pooled variance 1, standard error sqrt(1/3 + 1/3): t = -3.674 on 4 degrees of freedom.
    found = compare_seeds([1, 2, 3], [4, 5, 6])
    assert found.difference.value == -3
    assert found.p_value == pytest.approx(0.02131, abs=1e-5)
    half = 2.776445 * (2 / 3) ** 0.5
    assert (found.difference.low, found.difference.high) == pytest.approx((-3 - half, -3 + half), abs=1e-5)
    # Differences -3, -2 and -4: standard error sqrt(1/3), t = -5.196 on 2 degrees of freedom.
    paired = compare_seeds([1, 2, 3], [4, 4, 7], paired=True)
    assert paired.p_value == pytest.approx(0.03510, abs=1e-5)


def test_seeds_that_do_not_vary_or_do_not_pair():
    assert compare_seeds([1, 1], [1, 1]).p_value is None
    assert compare_seeds([1], [2]).p_value is None and compare_seeds([1], [2]).difference.value == -1
    assert compare_seeds([1, None], [2, 3]).difference.value is None
    with pytest.raises(BadDataError):
        compare_seeds([1, 2, 3], [1, 2], paired=True)


def test_holm_by_hand():
    # 0.01 x 3, 0.02 x 2, 0.03 x 1 raised to the one before it; None is no comparison.
    assert holm([0.02, None, 0.03, 0.01]) == pytest.approx([0.04, None, 0.04, 0.03])
    assert holm([None]) == [None] and holm([]) == []
    assert holm([0.02, 0.03, float("nan"), None]) == [0.04, 0.04, None, None]


@pytest.mark.parametrize(("seeds", "papers"), [(2, 0.70), (3, 0.81), (5, 0.88), (10, 0.92)])
def test_coverage_over_seeds_is_what_the_docstring_says(seeds, papers):
    rng = np.random.default_rng(seeds)
    drawn = rng.normal(size=(2000, seeds))
    for as_paper, expected in ((False, 0.95), (True, papers)):
        found = [over_seeds(values, as_paper) for values in drawn]
        assert np.mean([e.low <= 0 <= e.high for e in found]) == pytest.approx(expected, abs=0.025)
