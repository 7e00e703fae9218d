"""Thresholds, their sensitivity and specificity, and decision curves, against hand-worked cases and definitions."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.evaluation.thresholds import (
    choose_points,
    choose_threshold,
    decision_curve,
    measure_threshold,
    positive_class,
    share_interval,
)  # fmt: skip
from retfound_hf.vocabulary import MULTI_LABEL

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


def test_measures_by_hand():
    found = measure_threshold(TRUTH, SCORES, 0.35)
    assert found["sensitivity"].value == pytest.approx(2 / 3)
    assert found["specificity"].value == pytest.approx(2 / 3)
    assert found["ppv"].value == pytest.approx(2 / 3) and found["npv"].value == pytest.approx(2 / 3)
    nobody = measure_threshold(TRUTH, SCORES, 0.9)
    assert nobody["ppv"].value is None and nobody["sensitivity"].value == 0


def test_bad_targets_and_labels():
    with pytest.raises(BadDataError):
        choose_threshold([True, True], [0.1, 0.2], "youden")
    for target in (1.2, 0, None):
        with pytest.raises(BadArgumentError) as error:
            choose_threshold(TRUTH, SCORES, "sensitivity", target)
        assert error.value.field == "target"


def test_points_of_every_class_with_both_outcomes():
    truth = np.c_[TRUTH, np.zeros(6), ~TRUTH].astype(int)
    predictions = Predictions(None, np.c_[SCORES, SCORES, 1 - SCORES], truth, ["a", "b", "c"], MULTI_LABEL)
    points = choose_points(predictions, [("sensitivity", 1.0), ("youden", None)])
    assert [(point.label, point.criterion) for point in points] == [
        ("a", "sensitivity"), ("a", "youden"), ("c", "sensitivity"), ("c", "youden"),
    ]  # fmt: skip
    assert points[0].threshold == pytest.approx(0.25)
    table = predictions.operating_points(points)
    assert table.loc[0, ["sensitivity", "specificity", "ppv"]].tolist() == pytest.approx([1, 2 / 3, 3 / 4])


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
    with pytest.raises(BadArgumentError):
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


@pytest.mark.parametrize(
    ("names", "positive"),
    [
        ("normal|retinopathy", 1), ("glaucoma|normal", 0), ("AMD|Healthy", 0), ("amd|healthy eyes", 0),
        ("DR|no_dr", 0), ("DR|NoDR", 0), ("Referable|non-referable", 0), ("exudative|nonexudative", 0),
        ("disease|none", 0), ("1_stroke|2_control", 0), ("a_glaucoma|b_normal", 0), ("a_normal|b_glaucoma", 1),
        ("healthy|normal tension glaucoma", 1), ("glaucoma|normal tension glaucoma", 1), ("neovascular|nodular", 1),
        ("control|normal", 1), ("0|1", 1), ("left|right", 1),
    ],
)  # fmt: skip
def test_the_class_that_is_not_named_for_health(names, positive):
    assert positive_class(names.split("|")) == positive
