import numpy as np
import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.evaluation.calibration import (
    confidence_and_correctness,
    expected_calibration_error,
    reliability_curve,
)


def test_by_hand():
    # Two bins: (.1, .5] with accuracy 1/2 and mean .3, (.7, .9, 1) with accuracy 2/3 and mean 2.6/3.
    confidence, correct = [0.1, 0.5, 0.7, 0.9, 1.0], [True, False, True, False, True]
    curve = reliability_curve(confidence, correct, bins=2)
    assert curve.count.tolist() == [2, 3]
    assert curve.confidence == pytest.approx([0.3, 2.6 / 3])
    assert curve.accuracy == pytest.approx([1 / 2, 2 / 3])
    error = 2 / 5 * 0.2 + 3 / 5 * (2.6 / 3 - 2 / 3)
    assert expected_calibration_error(confidence, correct, bins=2) == pytest.approx(error)


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
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected)


def test_calibrated_confidence_has_a_small_error_and_overconfidence_its_size():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 0.8, size=20000)
    assert expected_calibration_error(confidence, rng.random(20000) < confidence) < 0.02
    assert expected_calibration_error(confidence + 0.2, rng.random(20000) < confidence) == pytest.approx(0.2, abs=0.02)


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
    with pytest.raises(RetFoundError, match=r"confidence from 0.5 to 1.5; accepted: \[0, 1\]"):
        expected_calibration_error([0.5, 1.5], [True, True])
    with pytest.raises(RetFoundError, match="must both be"):
        expected_calibration_error([0.5], [True, True])
    with pytest.raises(RetFoundError, match="bins=0; at least 1"):
        expected_calibration_error([0.5], [True], bins=0)
