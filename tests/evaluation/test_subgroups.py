"""Groups from columns, their metrics, and gaps: a planted one is found, and where there is none, 5% are."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.evaluation.subgroups import column_groups, in_order, subgroup_metrics
from retfound_hf.vocabulary import REGRESSION, SINGLE_LABEL


def test_columns_become_groups():
    assert column_groups(["F", "M", None, "F"]).tolist() == ["F", "M", "unknown", "F"]
    assert column_groups([1, 2.0, float("nan")]).tolist() == ["1", "2", "unknown"]
    ages = np.arange(40, 80)
    assert in_order(column_groups(ages)) == ["<49.8", "49.8–<59.5", "59.5–<69.2", "≥69.2"]
    assert in_order(column_groups([*ages, None], [50, 65])) == ["<50", "50–<65", "≥65", "unknown"]
    assert column_groups([49.9, 50, 64, 65], [50, 65]).tolist() == ["<50", "50–<65", "50–<65", "≥65"]
    assert in_order(np.array(["10", "9", "2"], dtype=object)) == ["2", "9", "10"]
    with pytest.raises(BadDataError):
        column_groups(["F", "M"], [50])
    with pytest.raises(BadArgumentError):
        column_groups([1, 2], [65, 50])


def drawn(rng, patients, shift_of_group, groups=2):
    """Predictions and groups of two eyes each; `shift_of_group` separates the classes."""
    eye = np.repeat(np.arange(patients), 2)
    group = rng.integers(groups, size=patients)[eye]
    labels = (rng.random(patients) < 0.4).astype(int)[eye]
    score = (rng.normal(size=patients)[eye] + rng.normal(size=2 * patients)) / 2**0.5
    probability = expit(score + labels * np.asarray(shift_of_group)[group])
    return two_classes(labels, probability, eye), np.array(list("abcde"), dtype=object)[group]


def two_classes(labels, probability, patients=None):
    scores = np.c_[1 - probability, probability]
    return Predictions(None, scores, labels, ["no", "yes"], SINGLE_LABEL, patients)


def test_each_groups_metrics_are_those_of_its_rows():
    predictions, groups = drawn(np.random.default_rng(0), 120, [1, 1, 1], 3)
    found, gaps = subgroup_metrics(predictions, groups, resamples=200)
    assert [group.name for group in found] == ["a", "b", "c"]
    assert [gap.metric for gap in gaps] == ["auroc", "balanced_accuracy", "brier"]
    for group in found:
        rows = groups == group.name
        expected = predictions.select(np.flatnonzero(rows)).metrics()
        assert group.rows == rows.sum() and group.metrics["auroc"].n == len(set(predictions.patients[rows]))
        for name, estimate in group.metrics.items():
            assert estimate.value == pytest.approx(expected[name])
            assert estimate.low < estimate.value < estimate.high
    first = {group.name: group.metrics["auroc"].value for group in found}
    assert gaps[0].comparison.difference.value == pytest.approx(first[gaps[0].first] - first[gaps[0].second])


def test_a_planted_gap_is_found():
    predictions, groups = drawn(np.random.default_rng(0), 300, [2.5, 2.5, 0.5], 3)
    (gap,) = subgroup_metrics(predictions, groups, ["auroc"], resamples=400)[1]
    assert gap.second == "c" and gap.comparison.difference.low > 0.1 and gap.comparison.p_value < 0.01


@pytest.mark.slow
def test_without_a_difference_one_in_twenty_gaps_excludes_zero():
    rng = np.random.default_rng(1)
    alarms = []
    for seed in range(200):
        predictions, groups = drawn(rng, 150, [1.2] * 3, 3)
        gaps = subgroup_metrics(predictions, groups, ["auroc"], 200, seed)[1]
        difference = gaps[0].comparison.difference
        alarms.append(difference.low > 0)
        assert (gaps[0].comparison.p_value < 0.06) >= (difference.low > 0) >= (gaps[0].comparison.p_value < 0.04)
    assert 0.01 <= np.mean(alarms) <= 0.09


def test_groups_too_small_to_compare():
    predictions, groups = drawn(np.random.default_rng(0), 100, [1, 1])
    groups[:4] = "few"
    found, gaps = subgroup_metrics(predictions, groups, ["auroc"], 200)
    assert [group.name for group in found] == ["a", "b", "few"]
    assert {gaps[0].first, gaps[0].second} == {"a", "b"}
    one, none = subgroup_metrics(predictions, np.full(200, "all"), ["auroc"], 200)
    assert len(one) == 1 and none == []
    with pytest.raises(BadArgumentError):
        subgroup_metrics(predictions, groups, ["aurok"], 200)
    with pytest.raises(BadDataError):
        subgroup_metrics(predictions, groups[:-1])


def test_a_metric_without_interval_has_values_alone():
    predictions, groups = drawn(np.random.default_rng(0), 100, [1, 1])
    found, gaps = subgroup_metrics(predictions, groups, ["ece", "auroc"], 200)
    assert [gap.metric for gap in gaps] == ["auroc"]
    assert found[0].metrics["ece"].value > 0 and found[0].metrics["ece"].interval is None


def test_a_group_that_lacks_a_class_has_no_average_over_classes():
    predictions, groups = drawn(np.random.default_rng(0), 100, [1, 1])
    groups[predictions.targets == 0] = "a"
    found = subgroup_metrics(predictions, groups, resamples=200)[0]
    lacking = next(group for group in found if group.name == "b")
    assert lacking.metrics["auroc"].value is None and lacking.metrics["balanced_accuracy"].value is None
    assert lacking.metrics["brier"].value is not None


def test_regression():
    rng = np.random.default_rng(0)
    labels = rng.normal(60, 10, size=200)
    groups = np.repeat(["x", "y"], 100)
    scores = labels + rng.normal(size=200) * np.where(groups == "x", 1, 6)
    found, gaps = subgroup_metrics(Predictions(None, scores, labels, ["age"], REGRESSION), groups, resamples=300)
    assert list(found[0].metrics) == ["mae", "rmse"]
    assert (gaps[0].first, gaps[0].second) == ("y", "x") and gaps[0].comparison.p_value < 0.01


def small_groups(count, patients):
    """Groups of so many patients with one eye each, a tenth of them ill and at least two."""
    rng = np.random.default_rng(0)
    groups = np.repeat([f"site {number:02d}" for number in range(count)], patients).astype(object)
    ill = (np.arange(len(groups)) % patients < max(2, patients // 10)).astype(int)
    probability = expit(rng.normal(size=len(ill)) + ill)
    return two_classes(ill, probability), groups


def test_groups_with_few_patients_of_a_class_are_not_compared():
    """Their gaps would be found by chance too often; their own intervals stay."""
    predictions, groups = small_groups(3, 40)
    predictions.targets[groups == "site 00"] = np.arange(40) % 2
    predictions.targets[groups == "site 01"] = np.arange(40) % 2
    predictions = two_classes(predictions.targets, predictions.scores[:, 1])
    found, (gap,) = subgroup_metrics(predictions, groups, ["auroc"], 200)
    assert gap.left_out == ("site 02",) and {gap.first, gap.second} == {"site 00", "site 01"}
    assert all(group.metrics["auroc"].interval is not None for group in found)
    few, few_groups = small_groups(2, 20)
    (gap,) = subgroup_metrics(few, few_groups, ["auroc"], 200)[1]
    assert (gap.comparison.difference.value, gap.comparison.p_value) == (None, None)
    assert "10 patients" in gap.comparison.difference.method
    columns = pd.DataFrame({"site": few_groups})
    table = replace(few, columns=columns).subgroups(["site"], 200).set_index("group")
    assert table.loc["gap", ["value", "low", "p_value"]].isna().all(axis=None)
    assert table.loc["gap", "method"].str.contains("10 patients").all()


def test_two_groups_that_are_seldom_defined_together_have_no_gap(monkeypatch):
    from retfound_hf.evaluation import subgroups

    predictions, groups = drawn(np.random.default_rng(0), 100, [1, 1])
    monkeypatch.setattr(subgroups, "MIN_DEFINED", 201)
    (gap,) = subgroup_metrics(predictions, groups, ["auroc"], 200)[1]
    assert (gap.comparison.difference.value, gap.comparison.p_value) == (None, None)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy"])
def test_a_group_of_a_tenth_of_the_patients_raises_few_false_alarms(metric):
    rng, alarms = np.random.default_rng(3), []
    for seed in range(400):
        predictions, _ = drawn(rng, 250, [1.2, 1.2])
        groups = np.where(np.repeat(np.arange(250), 2) < 25, "few", "many").astype(object)
        gaps = subgroup_metrics(predictions, groups, [metric], 200, seed)[1]
        alarms += [gap.comparison.p_value < 0.05 for gap in gaps if gap.comparison.p_value is not None]
    assert len(alarms) > 100 and np.mean(alarms) <= 0.09
