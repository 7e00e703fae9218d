"""Calibration: ECE against a loop, slope, intercept and temperature against planted ones and against a search."""

import warnings

import numpy as np
import pytest
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.linear_model import LogisticRegression

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.evaluation.calibration import calibration_line, fit_temperature, is_uninformed
from retfound_hf.evaluation.thresholds import confidence_and_correctness, reliability_curve
from retfound_hf.vocabulary import MULTI_LABEL, REGRESSION, SINGLE_LABEL


def test_by_hand():
    # Two bins: (.1, .5] with accuracy 1/2 and mean .3, (.7, .9, 1) with accuracy 2/3 and mean 2.6/3.
    confidence, correct = [0.1, 0.5, 0.7, 0.9, 1.0], [True, False, True, False, True]
    curve = reliability_curve(confidence, correct, bins=2)
    assert curve.count.tolist() == [2, 3]
    assert curve.confidence == pytest.approx([0.3, 2.6 / 3])
    assert curve.accuracy == pytest.approx([1 / 2, 2 / 3])
    error = 2 / 5 * 0.2 + 3 / 5 * (2.6 / 3 - 2 / 3)
    assert reliability_curve(confidence, correct, bins=2).error == pytest.approx(error)


def test_bins_include_their_upper_edge_and_zero_is_in_the_first():
    curve = reliability_curve([0.0, *np.linspace(0, 1, 11)[1:]], np.ones(11), bins=10)
    assert curve.count.tolist() == [2] + [1] * 9


def test_equals_a_loop_over_bins():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random(500), rng.random(500) < 0.6
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert reliability_curve(confidence, correct).error == pytest.approx(expected)


def test_calibrated_confidence_has_a_small_error_and_overconfidence_its_size():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 0.8, size=20000)
    assert reliability_curve(confidence, rng.random(20000) < confidence).error < 0.02
    assert reliability_curve(confidence + 0.2, rng.random(20000) < confidence).error == pytest.approx(0.2, abs=0.02)


def test_empty_bins_are_nan_and_count_for_nothing():
    curve = reliability_curve([0.95, 0.97], [True, False])
    assert np.isnan(curve.accuracy[:-1]).all() and curve.error == pytest.approx(0.96 - 0.5)


def test_top_label_and_pooled_pairs():
    truth = np.array([[True, False, False], [False, False, True]])
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]])
    confidence, correct = confidence_and_correctness(truth, scores, single=True)
    assert confidence.tolist() == [0.5, 0.6] and correct.tolist() == [True, False]
    confidence, correct = confidence_and_correctness(truth, scores, single=False)
    assert confidence.tolist() == scores.ravel().tolist() and correct.sum() == 2


def test_bad_input_is_refused():
    for confidence, correct in (([0.5, 1.5], [True, True]), ([0.5], [True, True]), ([], [])):
        with pytest.raises(BadDataError):
            reliability_curve(confidence, correct)
        with pytest.raises(BadDataError):
            calibration_line(correct, confidence)
    with pytest.raises(BadArgumentError):
        reliability_curve([0.5], [True], bins=0)


def test_planted_slope_and_intercept_are_found():
    rng = np.random.default_rng(0)
    true = rng.normal(size=20_000)
    outcome = rng.random(20_000) < expit(true)
    fine = calibration_line(outcome, expit(true))
    assert fine.slope.low < 1 < fine.slope.high and fine.intercept.low < 0 < fine.intercept.high
    too_sure = calibration_line(outcome, expit(2 * true))
    assert too_sure.slope.value == pytest.approx(0.5, abs=0.02)
    far_too_sure = calibration_line(outcome[:500], expit(8 * true[:500]))  # logits of up to 24, cut at 16
    assert far_too_sure.slope.low < 1 / 8 < far_too_sure.slope.high
    too_high = calibration_line(outcome, expit(true + 0.7))
    assert too_high.intercept.value == pytest.approx(-0.7, abs=0.05)
    assert too_high.slope.value == pytest.approx(1, abs=0.05)


def test_equals_scikit_learns_logistic_regression():
    rng = np.random.default_rng(1)
    outcome, probabilities = rng.random(200) < 0.4, rng.uniform(0.05, 0.95, size=200)
    fit = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(probabilities)[:, None], outcome)
    assert calibration_line(outcome, probabilities).slope.value == pytest.approx(fit.coef_[0, 0], rel=1e-4)


def test_copies_of_images_do_not_narrow_the_interval():
    rng = np.random.default_rng(2)
    x = rng.normal(size=150)
    outcome, many = rng.random(150) < expit(x), np.repeat(np.arange(150), 6)
    alone, copied = (
        calibration_line(outcome, expit(x)),
        calibration_line(outcome[many], expit(x)[many], many),
    )
    width = [found.slope.high - found.slope.low for found in (alone, copied)]
    assert width[1] == pytest.approx(width[0], rel=0.02)


def test_outcomes_that_leave_it_undefined():
    assert calibration_line([True, True], [0.5, 0.6]).slope.value is None
    assert calibration_line([True, True], [0.5, 0.6]).intercept.value is None
    separated = calibration_line([False, False, True, True], [0.1, 0.2, 0.8, 1.0])
    assert separated.slope.value is None and separated.intercept.value is not None
    assert calibration_line([False, True], [0.5, 0.5]).slope.value is None


def test_temperature_is_the_one_that_was_planted():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    labels = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert fit_temperature(3 * logits, labels, SINGLE_LABEL) == pytest.approx(3, rel=0.03)
    findings = rng.random(logits.shape) < expit(logits)
    assert fit_temperature(0.5 * logits, findings, MULTI_LABEL) == pytest.approx(0.5, rel=0.03)


def test_temperature_is_the_best_of_a_grid():
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(60, 3)) * 3, rng.integers(3, size=60)
    logits[np.arange(60), labels] += 2
    grid = np.exp(np.linspace(-2, 2, 4001))
    losses = [-log_softmax(logits / t, axis=1)[np.arange(60), labels].mean() for t in grid]
    assert fit_temperature(logits, labels, SINGLE_LABEL) == pytest.approx(grid[np.argmin(losses)], rel=2e-3)


def test_temperature_of_a_faultless_set_stays_one_with_a_warning():
    with pytest.warns(UserWarning):
        assert fit_temperature(np.eye(2)[[0, 1]] * 5, [0, 1], SINGLE_LABEL) == 1
    with pytest.raises(BadArgumentError) as error:
        fit_temperature([[1.0]], [1.0], REGRESSION)
    assert error.value.field == "calibrate"


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_temperature_of_scores_that_know_nothing_is_the_highest_with_a_warning(problem_type):
    """Scores that point away from the labels, scores without a difference, and a third of those that are noise."""
    single = problem_type == SINGLE_LABEL
    labels = np.arange(40) % 2 if single else np.eye(2, dtype=int)[np.arange(40) % 2]
    wrong = -3 * np.eye(2)[np.arange(40) % 2]
    for logits in (wrong - wrong.mean(axis=1, keepdims=True), np.zeros((40, 2))):
        with pytest.warns(UserWarning):
            temperature = fit_temperature(logits, labels, problem_type)
        assert temperature == 20 and is_uninformed(temperature)
    rng, uninformed = np.random.default_rng(0), 0
    for _ in range(100):
        logits = rng.normal(size=(40, 2))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            temperature = fit_temperature(logits, labels, problem_type)
        assert is_uninformed(temperature) == bool(caught) == (temperature == 20)
        uninformed += bool(caught)
    assert 33 <= uninformed <= 80


def test_temperature_of_scores_that_know_something_warns_of_nothing():
    rng = np.random.default_rng(4)
    labels = np.arange(40) % 2
    logits = rng.normal(size=(40, 2)) + np.eye(2)[labels]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not is_uninformed(fit_temperature(8 * logits, labels, SINGLE_LABEL))
    assert is_uninformed(19.9999) and not is_uninformed(19.9)  # folders of before the end was exact


def test_bins_of_equal_mass_by_hand():
    # Quarters of eight: bins up to 0.2, 0.4, 0.8 and 1, two in each.
    confidence = [0.1, 0.2, 0.3, 0.4, 0.7, 0.8, 0.9, 1.0]
    curve = reliability_curve(confidence, [0, 0, 1, 0, 1, 1, 1, 1], bins=4, equal_mass=True)
    assert curve.count.tolist() == [2, 2, 2, 2]
    assert curve.edges == pytest.approx([0, 0.2, 0.4, 0.8, 1])
    assert curve.error == pytest.approx((0.15 + 0.15 + 0.25 + 0.05) / 4)
    assert reliability_curve([0.5] * 6, [1, 0] * 3, equal_mass=True).error == 0  # ties share a bin
