import numpy as np
import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.evaluation.aggregation import aggregate, units_of

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
PATIENTS, EYES = ["a", "b", "a", "a"], ["L", "L", "R", "L"]
SCORES = np.array([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9], [0.6, 0.4]])


def test_units_come_in_the_order_of_their_first_image():
    assert units_of("image", PATIENTS).tolist() == [0, 1, 2, 3]
    assert units_of("eye", PATIENTS, EYES).tolist() == [0, 1, 2, 0]
    assert units_of("patient", PATIENTS).tolist() == [0, 1, 0, 0]


def test_mean_and_max_by_hand():
    labels, scores = aggregate(SINGLE, [0, 1, 0, 0], SCORES, units_of("patient", PATIENTS))
    assert labels.tolist() == [0, 1] and scores == pytest.approx(np.array([[0.5, 0.5], [0.5, 0.5]]))
    _, scores = aggregate(SINGLE, [0, 1, 0, 0], SCORES, units_of("patient", PATIENTS), "max")
    assert scores == pytest.approx(np.array([[0.8 / 1.7, 0.9 / 1.7], [0.5, 0.5]]))
    findings = np.array([[0, 1], [1, 0], [0, 1], [0, 1]])
    labels, scores = aggregate(MULTI, findings, SCORES, units_of("patient", PATIENTS), "max")
    assert labels.tolist() == [[0, 1], [1, 0]] and scores == pytest.approx(np.array([[0.8, 0.9], [0.5, 0.5]]))
    labels, scores = aggregate("regression", [50.0, 60, 50, 50], [50.0, 61, 53, 56], units_of("patient", PATIENTS))
    assert labels.tolist() == [50, 60] and scores == pytest.approx([53, 61])


def test_labels_that_disagree():
    units = units_of("patient", PATIENTS)
    with pytest.raises(RetFoundError, match="the images of 1 of 2 units have different labels"):
        aggregate(SINGLE, [0, 1, 2, 0], np.full((4, 3), 1 / 3), units)
    assert aggregate(SINGLE, [0, 1, 2, 0], np.full((4, 3), 1 / 3), units, conflicts="max")[0].tolist() == [2, 1]
    findings = np.array([[0, 0], [1, 0], [0, 1], [1, 0]])
    assert aggregate(MULTI, findings, SCORES, units, conflicts="max")[0].tolist() == [[1, 1], [1, 0]]


def test_unknown_patients_and_eyes():
    with pytest.raises(RetFoundError, match="--level patient needs patient_id for every image, and 1 of 4 have none"):
        units_of("patient", ["a", None, "b", "c"])
    with pytest.raises(RetFoundError, match="--level eye needs eye for every image, and 4 of 4 have none"):
        units_of("eye", PATIENTS)
