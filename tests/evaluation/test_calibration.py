"""Calibration: ECE against a loop, slope, intercept and temperature against planted ones and against a search."""

import warnings

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit, log_expit, log_softmax, logit, softmax
from sklearn.linear_model import LogisticRegression

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.evaluation.calibration import LogitScaling, calibration_line, fit_scaling
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


def drawn(logits, rng):
    """A class for each row, with the chances of the logits (N, C)."""
    return (softmax(logits, axis=1).cumsum(axis=1) > rng.random((len(logits), 1))).argmax(axis=1)


@pytest.mark.parametrize(("rows", "classes"), [(20_000, 2), (20_000, 4), (60, 2), (200, 12)])
def test_mean_probabilities_of_recalibrated_classes_are_their_shares(rows, classes):
    """As after a loss with class weights: the logits are too extreme, and lean to the rare classes."""
    rng = np.random.default_rng(0)
    true = 2 * rng.normal(size=(rows, classes)) + np.linspace(0, 3, classes)
    labels, shift = drawn(true, rng), np.linspace(0, 3, classes)
    logits = (true - shift) * 2.5
    found = fit_scaling(logits, labels, SINGLE_LABEL)
    shares = np.bincount(labels, minlength=classes) / rows
    assert softmax(found.apply(logits), axis=1).mean(axis=0) == pytest.approx(shares, abs=1e-8)
    assert len(set(found.slope)) == 1 and sum(found.intercept) == pytest.approx(0, abs=1e-9)
    if rows == 20_000:
        assert found.slope[0] == pytest.approx(0.4, rel=0.03)
        assert found.intercept == pytest.approx(shift - shift.mean(), abs=0.06)


def test_recalibration_is_the_logistic_regression_on_the_logits():
    rng = np.random.default_rng(1)
    logits, findings = rng.normal(size=(4000, 2)) * 3, np.zeros((4000, 2), int)
    for column, (slope, intercept) in enumerate([(0.5, -2.0), (1.4, 0.7)]):
        findings[:, column] = rng.random(4000) < expit(slope * logits[:, column] + intercept)
    found = fit_scaling(logits, findings, MULTI_LABEL)
    for column in range(2):
        design = sm.add_constant(logits[:, column])
        expected = sm.GLM(findings[:, column], design, family=sm.families.Binomial()).fit().params
        assert (found.intercept[column], found.slope[column]) == pytest.approx(expected, rel=0.005)
    assert expit(found.apply(logits)).mean(axis=0) == pytest.approx(findings.mean(axis=0), abs=1e-8)
    # Two exclusive classes are one finding with the difference of their logits.
    pair = fit_scaling(np.c_[np.zeros(4000), logits[:, 0]], findings[:, 0], SINGLE_LABEL)
    assert pair.slope[0] == pytest.approx(found.slope[0])
    assert pair.intercept[1] - pair.intercept[0] == pytest.approx(found.intercept[0])


def test_small_validation_sets_do_not_run_away():
    """New images are predicted better than after maximum likelihood, and a faultless ranking has a finite slope."""
    rng, better = np.random.default_rng(2), []

    def images(count):
        labels = (np.arange(count) % 10 == 0).astype(int)
        return np.c_[np.zeros(count), rng.normal(size=count) * 2**0.5 + 2 * labels - 1], labels

    new, truth = images(5000)
    for _ in range(40):
        logits, labels = images(30)
        design = sm.add_constant(logits[:, 1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit = sm.GLM(labels, design, family=sm.families.Binomial()).fit()
        plain = log_expit((2 * truth - 1) * (new[:, 1] * fit.params[1] + fit.params[0])).mean()
        ours = log_softmax(fit_scaling(logits, labels, SINGLE_LABEL).apply(new), axis=1)
        better.append(ours[np.arange(5000), truth].mean() - plain)
    assert np.mean(better) > 0.01
    faultless = fit_scaling(np.eye(2)[np.arange(40) % 2] * 5, np.arange(40) % 2, SINGLE_LABEL)
    assert 0.3 < faultless.slope[0] < 3


def test_findings_of_one_outcome_move_their_intercept_alone():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(50, 2))
    found = fit_scaling(logits, np.tile([0, 1], (50, 1)), MULTI_LABEL)
    assert found.slope == (1, 1)
    assert expit(found.apply(logits)).mean(axis=0) == pytest.approx([0.5 / 51, 50.5 / 51])
    labels = np.arange(50) % 2
    missing = fit_scaling(np.c_[logits + np.eye(2)[labels], logits[:, :1]], labels, SINGLE_LABEL)
    assert np.isfinite(missing.intercept).all()
    with pytest.raises(BadArgumentError) as error:
        fit_scaling([[1.0]], [1.0], REGRESSION)
    assert error.value.field == "calibrate"


@pytest.mark.parametrize("problem_type", [SINGLE_LABEL, MULTI_LABEL])
def test_scores_that_know_nothing_have_the_lowest_slope_with_a_warning(problem_type):
    """Scores that point away from the labels, scores without a difference, and about half of those that are noise."""
    single = problem_type == SINGLE_LABEL
    labels = np.arange(40) % 2 if single else np.eye(2, dtype=int)[np.arange(40) % 2]
    wrong = -3 * np.eye(2)[np.arange(40) % 2]
    for logits in (wrong - wrong.mean(axis=1, keepdims=True), np.zeros((40, 2))):
        with pytest.warns(UserWarning):
            found = fit_scaling(logits, labels, problem_type)
        assert min(found.slope) == 0.05 and found.is_uninformed
    rng, uninformed = np.random.default_rng(0), 0
    for _ in range(30):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = fit_scaling(rng.normal(size=(40, 2)), labels, problem_type)
        assert found.is_uninformed == bool(caught) == (min(found.slope) == 0.05)
        uninformed += bool(caught)
    assert 8 <= uninformed <= 27
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not fit_scaling(8 * (rng.normal(size=(40, 2)) - wrong / 3), labels, problem_type).is_uninformed


def test_what_a_configuration_records():
    assert LogitScaling.of({"calibration_temperature": 1.0}, 2) is None and LogitScaling.of({}, 2) is None
    old = LogitScaling.of({"calibration_temperature": 1.25}, 2)
    assert old == LogitScaling((0.8, 0.8), (0.0, 0.0)) and "1.25" in old.describe(["a", "b"])
    assert LogitScaling.of({"calibration_temperature": 19.9999}, 1).is_uninformed
    assert not LogitScaling.of({"calibration_temperature": 19.9}, 1).is_uninformed
    new = LogitScaling((0.5, 2.0), (-1.0, 0.25))
    assert LogitScaling.of({"calibration_slope": [0.5, 2.0], "calibration_intercept": [-1.0, 0.25]}, 2) == new
    logits = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    assert new.apply(logits).dtype == np.float32
    assert new.after(old).apply(logits) == pytest.approx(new.apply(old.apply(logits)), rel=1e-5)
    text = new.describe(["glaucoma", "normal"])
    assert all(part in text for part in ("0.50 (glaucoma)", "2.00 (normal)", "-1.00 (glaucoma)", "0.25 (normal)"))


def test_bins_of_equal_mass_by_hand():
    # Quarters of eight: bins up to 0.2, 0.4, 0.8 and 1, two in each.
    confidence = [0.1, 0.2, 0.3, 0.4, 0.7, 0.8, 0.9, 1.0]
    curve = reliability_curve(confidence, [0, 0, 1, 0, 1, 1, 1, 1], bins=4, equal_mass=True)
    assert curve.count.tolist() == [2, 2, 2, 2]
    assert curve.edges == pytest.approx([0, 0.2, 0.4, 0.8, 1])
    assert curve.error == pytest.approx((0.15 + 0.15 + 0.25 + 0.05) / 4)
    assert reliability_curve([0.5] * 6, [1, 0] * 3, equal_mass=True).error == 0  # ties share a bin
