"""Predictions: checks on construction, CSV round trip, eyes and patients, tables of a report."""

import numpy as np
import pandas as pd
import pytest

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.evaluation.report import compute_metrics
from retfound_hf.vocabulary import MULTI_LABEL, REGRESSION, SINGLE_LABEL

PATIENTS, EYES = ["a", "b", "a", "a"], ["L", "L", "R", "L"]
SCORES = np.array([[0.8, 0.2], [0.5, 0.5], [0.1, 0.9], [0.6, 0.4]])


@pytest.mark.parametrize(
    ("labels", "scores", "rows"),
    [
        ([0, 1], [[2.0, -1.0], [0.0, 1.0]], [0]),  # logits
        ([0, 1], [[0.9, 0.9], [0.0, 1.0]], [0]),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], [1]),
        ([0, 0.5], [[0.5, 0.5], [0.5, 0.5]], [1]),
        ([0], [[0.5, 0.5], [0.5, 0.5]], []),
        ([0, 1], [[0.5, np.nan], [0.5, 0.5]], [0]),
        ([0, 1], [[0.5, 0.2, 0.3]] * 2, []),
        ([], np.zeros((0, 2)), []),
        (["a", "b"], [[0.5, 0.5], [0.5, 0.5]], []),
    ],
)
def test_bad_rows_are_named(labels, scores, rows):
    with pytest.raises(BadDataError) as error:
        compute_metrics(SINGLE_LABEL, labels, scores, ["a", "b"])
    assert list(error.value.rows) == [str(row) for row in rows] and "\n" not in str(error.value)


def test_what_does_not_fit_is_refused():
    for problem_type, names, field in (("ordinal", "ab", "problem_type"), (SINGLE_LABEL, "aa", "class_names")):
        with pytest.raises(BadArgumentError) as error:
            Predictions(None, [[1.0, 0.0]], [0], list(names), problem_type)
        assert error.value.field == field
    for options in ({"ids": ["x", "x"]}, {"ids": ["x"]}, {"patients": ["p"]}, {"targets": [0, 1]}):
        with pytest.raises(BadDataError):
            Predictions(**{"ids": ["x", "y"], "scores": np.eye(2), "targets": np.eye(2), "class_names": ["a", "b"],
                           "problem_type": MULTI_LABEL, **options})  # fmt: skip
    with pytest.raises(BadDataError) as error:
        Predictions(["x", "y"], [[0.5, 0.5], [0.5, np.nan]], None, ["a", "b"], SINGLE_LABEL)
    assert error.value.rows == ("y",)
    with pytest.raises(BadDataError):
        Predictions(None, np.eye(2), None, ["a", "b"], SINGLE_LABEL).metrics()
    for labels, scores in (([1, 2, 3], [1, 2]), ([1, np.nan], [1, 2]), (np.ones((2, 2)), np.ones((2, 2)))):
        with pytest.raises(BadDataError):
            compute_metrics(REGRESSION, labels, scores, ["age"])


def test_half_precision_probabilities_are_accepted(single_label):
    import torch

    labels, scores = single_label(50, 5)
    rounded = torch.from_numpy(scores).bfloat16().float().numpy()
    exact, found = (compute_metrics(SINGLE_LABEL, labels, values, list("abcde")) for values in (scores, rounded))
    assert found["loss"] == pytest.approx(exact["loss"], abs=0.01)


def some(kind: str, labelled: bool = True) -> Predictions:
    """Twelve images of five patients, one of them unknown."""
    rng = np.random.default_rng(0)
    names = {SINGLE_LABEL: ("0", "None"), MULTI_LABEL: ("dr", "amd", "NA"), REGRESSION: ("age", "bmi")}[kind]
    scores = rng.random((12, len(names)))
    targets = rng.normal(50, 9, size=(12, 2))
    if kind == SINGLE_LABEL:
        scores, targets = scores / scores.sum(axis=1, keepdims=True), np.arange(12) % 2
    elif kind == MULTI_LABEL:
        targets = (rng.random((12, 3)) < 0.4).astype(int)
        targets[0] = 0  # no finding at all: an empty cell
    patients = np.array(["01", "01", "2", "2", "p", "p", "q", "q", "01", "2", "p", None], object)
    rows = pd.DataFrame({"id": [f"{n}.png" for n in range(12)], "patient_id": patients, "eye": list("LR") * 6})
    return Predictions.of_table(rows, targets if labelled else None, scores, names, kind)


@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("kind", [SINGLE_LABEL, MULTI_LABEL, REGRESSION])
def test_a_table_comes_back_as_it_was_written(tmp_path, kind, labelled):
    first = some(kind, labelled)
    first.to_csv(tmp_path / "predictions.csv")
    again = Predictions.read_csv(tmp_path / "predictions.csv")
    assert (again.problem_type, again.class_names) == (kind, first.class_names)
    assert again.ids.tolist() == first.ids.tolist() and again.scores == pytest.approx(first.scores, rel=1e-8)
    if labelled:
        assert again.targets == pytest.approx(first.targets, rel=1e-8)
        assert again.metrics() == pytest.approx(first.metrics(), rel=1e-6)
    else:
        assert again.targets is None
    assert again.patients.tolist()[:-1] == first.patients.tolist()[:-1] and pd.isna(again.patients[-1])
    assert again.eyes.tolist() == first.eyes.tolist()


def test_names_of_formulas_come_back(tmp_path):
    ids, names = ['=HYPERLINK("http://x")', "@SUM(1)|' /C calc'!A0", "-1.png", "\t=2"], ("=cls", "-", "+")
    rows = pd.DataFrame({"id": ids, "patient_id": ["=1+1", "+2", "'=3", "ordinary"], "eye": list("LRLR")})
    scores = np.full((4, 3), 1 / 3)
    first = Predictions.of_table(rows, np.array([0, 1, 2, 0]), scores, names, SINGLE_LABEL)
    first.to_csv(tmp_path / "predictions.csv")
    plain = pd.read_csv(tmp_path / "predictions.csv", dtype=str)
    assert not plain.map(lambda cell: cell[0] in "=+-@\t\r").any(axis=None)
    again = Predictions.read_csv(tmp_path / "predictions.csv")
    assert again.ids.tolist() == ids and again.class_names == names
    assert again.patients.tolist() == rows["patient_id"].tolist() and again.targets.tolist() == [0, 1, 2, 0]


def test_columns_of_the_table(tmp_path):
    predictions = Predictions(["x", "y"], SCORES[:2], [0, 1], ["a", "b"], SINGLE_LABEL, [None, np.nan])
    assert predictions.patients is None
    assert list(predictions.table()) == ["id", "label", "prediction", "prob/a", "prob/b"]
    numbers = Predictions(["x", "y"], [1.0, 2.0], [1.0, 3.0], ["age"], REGRESSION)
    numbers.to_csv(tmp_path / "numbers.csv")
    assert list(pd.read_csv(tmp_path / "numbers.csv")) == ["id", "label", "prediction"]
    assert Predictions.read_csv(tmp_path / "numbers.csv").metrics()["mae"] == 0.5
    assert some(MULTI_LABEL).table()["label"][0] == ""


def test_tables_that_cannot_be_read(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text("id,label,prob/a,prob/b\nx,a,0.5,0.5\ny,c,0.5,0.5\n")
    with pytest.raises(BadDataError) as error:
        Predictions.read_csv(path)
    assert error.value.rows == ("y",) and error.value.source == str(path)
    for text in ("label,prob/a,prob/b\na,0.5,0.5\n", "id,label\nx,a\n"):
        path.write_text(text)
        with pytest.raises(BadDataError):
            Predictions.read_csv(path)


@pytest.mark.parametrize(
    ("kind", "labels", "highest", "mean", "most"),
    [
        (SINGLE_LABEL, [0, 1, 1, 0], [1, 1], [[0.5, 0.5], [0.5, 0.5]], [[0.8 / 1.7, 0.9 / 1.7], [0.5, 0.5]]),
        (MULTI_LABEL, [[0, 1], [1, 0], [0, 0], [0, 1]], [[0, 1], [1, 0]], [[0.5, 0.5]] * 2, [[0.8, 0.9], [0.5, 0.5]]),
        (
            REGRESSION,
            [[50, 1], [60, 1], [50, 2], [50, 1]],
            [[50, 2], [60, 1]],
            [[0.5] * 2] * 2,
            [[0.8, 0.9], [0.5] * 2],
        ),
    ],
)
def test_mean_and_max_by_hand(kind, labels, highest, mean, most):
    order = ("a", "b") if kind == SINGLE_LABEL else None
    images = Predictions(list("wxyz"), SCORES, labels, ["a", "b"], kind, PATIENTS, class_order=order)
    for how, expected in (("mean", mean), ("max", most)):
        found = images.at_level("patient", how, "max")
        assert found.targets.tolist() == highest and found.scores == pytest.approx(np.array(expected))
    with pytest.raises(BadDataError) as error:
        images.at_level("patient")
    assert error.value.rows == ("w", "y", "z")


@pytest.mark.parametrize(
    ("names", "order", "highest"),
    [
        (["glaucoma", "normal"], None, [0, 0]), (["amd", "dr"], ("dr", "amd"), [0, 0]), (["0", "1"], None, [1, 1]),
        (["amd", "dr"], None, None),
    ],
)  # fmt: skip
def test_the_highest_class_is_that_of_the_known_order(names, order, highest):
    images = Predictions(list("wxyz"), SCORES, [0, 0, 1, 1], names, SINGLE_LABEL, list("abab"), class_order=order)
    if highest is None:
        with pytest.raises(BadArgumentError) as error:
            images.at_level("patient", label_conflicts="max")
        assert (error.value.field, error.value.value) == ("label_conflicts", "max")
        # Labels that agree have no higher one.
        agreeing = images.select(np.array([0, 1])).at_level("patient", label_conflicts="max")
        assert agreeing.targets.tolist() == [0, 0]
    else:
        assert images.at_level("patient", label_conflicts="max").targets.tolist() == highest


def test_eyes_and_patients():
    columns = pd.DataFrame({"camera": ["A", "A", "B", "B"], "age": [50, 60, 50, 50]})
    images = Predictions(list("wxyz"), SCORES, [0, 1, 2 - 1, 0], ["no", "yes"], SINGLE_LABEL, PATIENTS, EYES, columns)
    assert images.at_level("image") is images
    eyes = images.at_level("eye")
    assert eyes.ids.tolist() == ["a/L", "b/L", "a/R"] and eyes.targets.tolist() == [0, 1, 1]
    assert eyes.scores[0] == pytest.approx([0.7, 0.3]) and eyes.eyes.tolist() == ["L", "L", "R"]
    assert pd.isna(eyes.columns["camera"][0]) and eyes.columns["age"].tolist() == [50, 60, 50]
    patients = images.at_level("patient", "max", label_conflicts="max")
    assert patients.ids.tolist() == ["a", "b"] and patients.targets.tolist() == [1, 1]
    assert patients.patients.tolist() == ["a", "b"] and pd.isna(patients.columns["eye"][0])
    with pytest.raises(BadArgumentError):
        images.at_level("clinic")


def test_unknown_patients_and_eyes():
    images = Predictions(list("wxyz"), SCORES, None, ["a", "b"], SINGLE_LABEL, ["a", None, "b", "c"])
    for level, rows in (("patient", ("x",)), ("eye", ("x",))):
        with pytest.raises(BadDataError) as error:
            images.at_level(level)
        assert error.value.rows == rows
    with pytest.raises(BadDataError) as error:
        images.select(np.array([0, 2])).at_level("eye")
    assert error.value.rows == ("w", "y")
