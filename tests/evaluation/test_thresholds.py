"""Thresholds, their sensitivity and specificity, and decision curves, against hand-worked cases and definitions."""

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.evaluation.bootstrap import Estimate
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.evaluation.thresholds import (
    OperatingPoint,
    choose_points,
    choose_threshold,
    class_counts,
    decision_curve,
    finding_of,
    measure_threshold,
    net_benefit_table,
    points_table,
    positive_class,
    predictive_values,
    share_interval,
)  # fmt: skip
from retfound_hf.vocabulary import MULTI_LABEL, SINGLE_LABEL, known_order

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
    assert (alone.low, alone.high) == pytest.approx(proportion_confint(7 / 10 * 9, 9, method="agresti_coull"))
    copies = share_interval(np.repeat(hits, 5), np.repeat(np.arange(10), 5))
    assert (copies.low, copies.high, copies.n) == pytest.approx((alone.low, alone.high, 10))
    every = share_interval(np.ones(40, bool), np.arange(40) // 2)
    assert every.high == pytest.approx(1) and every.low == pytest.approx(
        proportion_confint(20, 20, method="agresti_coull")[0]
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
        ("GON+|GON-", 0), ("D|N", 0), ("DR|NDR", 0), ("referable|unreferable", 0), ("diseased|undiseased", 0),
        ("case|ctrl", 0), ("ill|well", 0), ("Infected|Uninfected", 0), ("RG|NRG", 0), ("AMD (-)|AMD (+)", 1),
        ("negative|positive", 1), ("abnormal|normal", 0), ("gradable|ungradable", 1), ("benign|malignant", 1),
        ("high risk|low risk", 0), ("DR negative|DR positive", 1), ("False|True", 1), ("no|yes", 1), ("0.0|1.0", 1),
        ("glaucoma|sano", 0), ("glaucome|sain", 0), ("AMD|Gesund", 0), ("doente|saudável", 0), ("Ja|Nein", 0),
        ("异常|正常", 0), ("糖网|无糖网", 0), ("異常あり|異常なし", 0), ("비정상|정상", 0), ("есть|нет", 0),
    ],
)  # fmt: skip
def test_the_class_that_is_not_named_for_health(names, positive):
    names = names.split("|")
    assert positive_class(names) == positive
    # Names that tell it do so in either order.
    assert (known_order(names) is None) == (positive_class(names[::-1]) == positive)


def test_the_finding_that_is_stated():
    assert positive_class(["glaucoma", "normal"], ["glaucoma", "normal"]) == 1
    assert positive_class(["amd", "dr"], ["dr", "amd"]) == 0


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ("0|1|2|3|4", "0|1|2|3|4"), ("stage 10|stage 2|stage 1", "stage 1|stage 2|stage 10"), ("R3|R0|R1", "R0|R1|R3"),
        ("stage-2|stage-10|stage-1", "stage-1|stage-2|stage-10"), ("DR-1|DR-0", "DR-0|DR-1"), ("1|-1|0", "-1|0|1"),
        ("change -1|change +1|change 0", "change -1|change 0|change +1"),
        ("Mild|No_DR|Severe", None), ("6 weeks|drusen 3|x 4", None), ("grade 1|grade 1.0|grade 2", None),
        ("Grade III|Grade I|Grade II", "Grade I|Grade II|Grade III"), ("D|V|I", None), ("X|II|0", "0|II|X"),
        ("amd|dme|normal", None), ("normal|early|late", None), ("a|b", None), ("in|out", None),
    ],
)  # fmt: skip
def test_the_order_of_more_classes(names, order):
    assert known_order(names.split("|")) == (order and tuple(order.split("|")))


def estimate(value, low, high):
    return Estimate(value, low, high, 50, "given")


def test_predictive_values_at_a_named_prevalence_are_by_bayes_rule():
    sensitivity, specificity = share_interval(np.arange(60) < 54), share_interval(np.arange(200) < 170)
    found = predictive_values(sensitivity, specificity, 0.02)
    assert found["ppv"].value == pytest.approx(0.9 * 0.02 / (0.9 * 0.02 + 0.15 * 0.98))
    assert found["npv"].value == pytest.approx(0.85 * 0.98 / (0.85 * 0.98 + 0.1 * 0.02))
    for one in found.values():
        assert one.low < one.value < one.high
    same = predictive_values(sensitivity, specificity, 60 / 260)  # at the set's own share, the set's own value
    assert same["ppv"].value == pytest.approx(54 / 84) and same["npv"].value == pytest.approx(170 / 176)


def test_predictive_values_of_perfect_and_of_empty_sides():
    perfect = predictive_values(estimate(1.0, 0.8, 1.0), estimate(1.0, 0.9, 1.0), 0.1)
    for one in perfect.values():
        assert one.value == one.high == 1 and 0 < one.low < 1
    never = predictive_values(estimate(0.0, 0.0, 0.2), estimate(1.0, 0.9, 1.0), 0.1)
    assert never["ppv"].value is None and never["npv"].value == pytest.approx(0.9)
    unknown = predictive_values(estimate(None, None, None), estimate(1.0, 0.9, 1.0), 0.1)
    assert unknown["ppv"].value is None and unknown["npv"].value is None


def test_counts_of_the_table_and_of_the_patients():
    scores = np.c_[1 - SCORES, SCORES]
    predictions = Predictions(None, scores, TRUTH.astype(int), ["no_dr", "dr"], SINGLE_LABEL, list("aabbcc"))
    table = points_table(predictions, [OperatingPoint("dr", "youden", None, 0.35)], {"dr": 0.5}).iloc[0]
    assert [table[name] for name in ("tp", "fp", "fn", "tn")] == [2, 1, 1, 2]
    assert table["ppv_there"] == pytest.approx(2 / 3) and table["prevalence"] == 0.5
    counts = class_counts(predictions).set_index("class")
    assert counts.loc["dr"].tolist() == [6, 3, 3, 2] and counts.loc["no_dr", "patients_positive"] == 2
    unknown = Predictions(None, scores, TRUTH.astype(int), ["a", "b"], SINGLE_LABEL)
    assert class_counts(unknown)["patients"].isna().all()


def test_finding_of():
    assert finding_of(SINGLE_LABEL, ["glaucoma", "normal"]) == "glaucoma"
    assert finding_of(MULTI_LABEL, ["glaucoma", "normal"]) is None and finding_of(SINGLE_LABEL, list("abc")) is None


def test_net_benefit_of_each_threshold_has_an_interval():
    rng = np.random.default_rng(0)
    truth, patients = rng.random(300) < 0.3, np.repeat(np.arange(150), 2)
    scores = np.clip(0.3 + 0.2 * truth + rng.normal(scale=0.1, size=300), 0, 1)
    predictions = Predictions(None, np.c_[1 - scores, scores], truth.astype(int), ["n", "y"], SINGLE_LABEL, patients)
    table = net_benefit_table(predictions).query("`class` == 'y'").set_index("threshold")
    curve = decision_curve(truth, scores, table.index.to_numpy())
    assert table["net_benefit"].to_numpy() == pytest.approx(curve.model)
    assert table["treat_all"].to_numpy() == pytest.approx(curve.treat_all)
    assert table["gain"].to_numpy() == pytest.approx(curve.model - np.maximum(curve.treat_all, 0))
    inside = table[(table["net_benefit"] > 0) & (table.index > 0.3)]
    assert (inside["net_benefit_low"] < inside["net_benefit"]).all()
    # Twice the images of the same patients tell no more.
    twice = Predictions(
        None, np.repeat(predictions.scores, 2, axis=0), np.repeat(truth, 2).astype(int), ["n", "y"], SINGLE_LABEL,
        np.repeat(patients, 2),
    )  # fmt: skip
    again = net_benefit_table(twice).query("`class` == 'y'").set_index("threshold")
    assert again["gain_high"].to_numpy() == pytest.approx(table["gain_high"].to_numpy(), nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize(("share", "patients"), [(0.5, 100), (0.2, 100), (0.1, 300)])
def test_intervals_of_net_benefit_hold_the_true_value(share, patients):
    """Two eyes that are alike; the threshold is the share."""
    rng, hits = np.random.default_rng(1), 0

    def images(count):
        ill = rng.random(count) < share
        score = np.repeat(rng.normal(size=count), 2) * 0.7 + rng.normal(size=2 * count) * 0.7 + np.repeat(ill, 2) * 1.5
        return np.repeat(ill, 2), 1 / (1 + np.exp(-(1.5 * score - 1.125 + np.log(share / (1 - share)))))

    truth, scores = images(200_000)
    expected = decision_curve(truth, scores, [share]).model[0]
    for _ in range(500):
        truth, scores = images(patients)
        found = Predictions(None, np.c_[1 - scores, scores], truth.astype(int), ["n", "y"], SINGLE_LABEL,
                            np.repeat(np.arange(patients), 2))  # fmt: skip
        row = net_benefit_table(found, [share]).query("`class` == 'y'").iloc[0]
        hits += row["net_benefit_low"] <= expected <= row["net_benefit_high"]
    assert 0.92 <= hits / 500 <= 0.98
