"""Thresholds, their sensitivity and specificity, and decision curves, against hand-worked cases and definitions."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from retfound_hf.errors import RetFoundError
from retfound_hf.evaluation.calibration import decision_curve
from retfound_hf.evaluation.thresholds import (
    choose_threshold,
    measure_threshold,
    sensitivity_at_specificity,
    share_interval,
    specificity_at_sensitivity,
)

TRUTH = np.array([0, 0, 1, 0, 1, 1], bool)
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_thresholds_by_hand():
    assert choose_threshold(TRUTH, SCORES, "sensitivity", 1.0) == pytest.approx(0.25)
    assert choose_threshold(TRUTH, SCORES, "sensitivity", 0.6) == pytest.approx(0.45)
    assert choose_threshold(TRUTH, SCORES, "specificity", 1.0) == pytest.approx(0.45)
    assert choose_threshold(TRUTH, SCORES, "specificity", 0.5) == pytest.approx(0.25)
    assert choose_threshold(TRUTH, SCORES, "youden") == pytest.approx(0.25)  # 1 + 2/3, as at 0.45: the lower
    assert choose_threshold([True, False], [0.1, 0.2], "specificity", 1.0) > 0.2


@pytest.mark.parametrize("seed", range(5))
def test_thresholds_are_the_best_of_the_roc_curve(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random(80) < 0.4
    scores = (rng.normal(size=80) + truth).round(1)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    for target in (0.8, 0.9, 0.95):
        found = scores >= choose_threshold(truth, scores, "sensitivity", target)
        assert found[truth].mean() >= target
        assert found[~truth].mean() == pytest.approx(fpr[tpr >= target].min())
        found = scores >= choose_threshold(truth, scores, "specificity", target)
        assert found[truth].mean() == pytest.approx(tpr[fpr <= 1 - target + 1e-9].max())
        assert sensitivity_at_specificity(truth, scores, target, resamples=100).value == pytest.approx(
            tpr[fpr <= 1 - target + 1e-9].max()
        )
        assert specificity_at_sensitivity(truth, scores, target, resamples=100).value == pytest.approx(
            1 - fpr[tpr >= target].min()
        )


def test_measures_by_hand():
    found = measure_threshold(TRUTH, SCORES, 0.35)
    assert found["sensitivity"].value == pytest.approx(2 / 3)
    assert found["specificity"].value == pytest.approx(2 / 3)
    assert found["ppv"].value == pytest.approx(2 / 3) and found["npv"].value == pytest.approx(2 / 3)
    nobody = measure_threshold(TRUTH, SCORES, 0.9)
    assert nobody["ppv"].value is None and nobody["sensitivity"].value == 0


def test_bad_targets_and_labels():
    with pytest.raises(RetFoundError, match="all of one kind"):
        choose_threshold([True, True], [0.1, 0.2], "youden")
    with pytest.raises(RetFoundError, match=r"a sensitivity of 1\.2 cannot be asked for"):
        choose_threshold(TRUTH, SCORES, "sensitivity", 1.2)
    with pytest.raises(RetFoundError, match="specificity 2 must be from 0 to 1"):
        sensitivity_at_specificity(TRUTH, SCORES, 2)


def test_a_share_of_images_rests_on_the_patients():
    hits = np.array([1, 1, 1, 0, 1, 0, 1, 1, 0, 1], bool)
    alone = share_interval(hits)
    from statsmodels.stats.proportion import proportion_confint

    # Independent images: the ratio estimator's variance is p (1 - p) / (n - 1), so that n - 1 of them count.
    assert (alone.low, alone.high) == pytest.approx(proportion_confint(7 / 10 * 9, 9, method="wilson"))
    copies = share_interval(np.repeat(hits, 5), np.repeat(np.arange(10), 5))
    assert (copies.low, copies.high, copies.n) == pytest.approx((alone.low, alone.high, 10))
    every = share_interval(np.ones(40, bool), np.arange(40) // 2)
    assert every.high == pytest.approx(1) and every.low == pytest.approx(
        proportion_confint(20, 20, method="wilson")[0]
    )
    assert share_interval([], []).value is None
    assert share_interval([True, False], [None, None]).n == 2


def test_decision_curve_by_hand():
    # At 0.25: two of three positives and one of three negatives are treated; a false positive costs a third.
    curve = decision_curve(TRUTH, np.array([0.1, 0.1, 0.1, 0.4, 0.5, 0.6]), [0.25])
    assert curve.model == pytest.approx([2 / 6 - 1 / 6 / 3]) and curve.treat_all == pytest.approx([0.5 - 0.5 / 3])
    with pytest.raises(RetFoundError, match="above 0 and below 1"):
        decision_curve(TRUTH, SCORES, [0, 0.5])


def test_decision_curve_equals_its_definition_and_a_useless_model_treats_all():
    rng = np.random.default_rng(0)
    truth, scores = rng.random(100) < 0.3, rng.random(100).round(2)
    curve = decision_curve(truth, scores)
    for threshold, model in zip(curve.thresholds, curve.model, strict=True):
        treated = scores >= threshold
        expected = (treated & truth).mean() - (treated & ~truth).mean() * threshold / (1 - threshold)
        assert model == pytest.approx(expected)
    constant = decision_curve(truth, np.ones(100))
    assert constant.model == pytest.approx(constant.treat_all)
