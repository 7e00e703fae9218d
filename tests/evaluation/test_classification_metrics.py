import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from retfound_hf.errors import RetFoundError
from retfound_hf.evaluation.metrics import classification_metrics, compute_metrics

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
DESIGN = {
    "auroc", "auprc", "accuracy", "balanced_accuracy", "f1_macro", "precision_macro", "recall_macro", "kappa",
    "quadratic_kappa", "mcc", "hamming", "jaccard", "ece", "brier", "loss",
}  # fmt: skip


def test_names_are_those_of_the_design(single_label, multi_label):
    for problem, (labels, scores) in ((SINGLE, single_label(60, 3)), (MULTI, multi_label(60, 3))):
        found = compute_metrics(problem, labels, scores, ["a", "b", "c"])
        assert set(found) == DESIGN | {f"{name}/{label}" for name in ("auroc", "auprc") for label in "abc"}
        assert all(type(value) is float for value in found.values())


def test_two_classes_by_hand():
    # "yes" scores .9 .8 .3, "no" .6 .2: of the 6 pairs 5 are in order. From the top, "yes" is at ranks 1, 2 and 4,
    # with precisions 1/1, 2/2 and 3/4; from the bottom, "no" is at ranks 1 and 3, with 1/1 and 2/3.
    labels = [1, 1, 0, 1, 0]
    positive = np.array([0.9, 0.8, 0.6, 0.3, 0.2])
    found = classification_metrics(labels, np.c_[1 - positive, positive], ["no", "yes"])
    assert [found[name] for name in ("auroc", "auroc/no", "auroc/yes")] == pytest.approx([5 / 6] * 3)
    assert found["auprc/yes"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["auprc/no"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["auprc"] == pytest.approx((found["auprc/yes"] + found["auprc/no"]) / 2)
    # Predicted 1 1 1 0 0: 3 of 5 right; kappa = (3/5 - 13/25) / (1 - 13/25).
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["hamming"] == pytest.approx(2 / 5)
    assert found["kappa"] == found["quadratic_kappa"] == pytest.approx((0.6 - 0.52) / 0.48)
    assert found["balanced_accuracy"] == found["recall_macro"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["jaccard"] == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert found["brier"] == pytest.approx((0.1**2 + 0.2**2 + 0.6**2 + 0.7**2 + 0.2**2) / 5)
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.3, 0.8]).mean())
    # One row per bin of 1/15: confidences .9 .8 .6 .7 .8, the two of .8 share a bin and both are right.
    assert found["ece"] == pytest.approx((0.1 + 2 * 0.2 + 0.6 + 0.7) / 5)


@pytest.mark.parametrize("classes", [2, 5])
def test_single_label_equals_scikit_learn(single_label, classes):
    labels, scores = single_label(203, classes)
    found = classification_metrics(labels, scores, [f"c{index}" for index in range(classes)])
    predicted, one_hot = scores.argmax(axis=1), np.eye(classes)[labels]
    expected = {
        "auroc": reference.roc_auc_score(one_hot, scores, average="macro"),
        "auprc": reference.average_precision_score(one_hot, scores, average="macro"),
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, predicted),
        "f1_macro": reference.f1_score(labels, predicted, average="macro"),
        "precision_macro": reference.precision_score(labels, predicted, average="macro"),
        "recall_macro": reference.recall_score(labels, predicted, average="macro"),
        "kappa": reference.cohen_kappa_score(labels, predicted),
        "quadratic_kappa": reference.cohen_kappa_score(labels, predicted, weights="quadratic"),
        "mcc": reference.matthews_corrcoef(labels, predicted),
        "hamming": reference.hamming_loss(labels, predicted),
        "jaccard": reference.jaccard_score(labels, predicted, average="macro"),
        "brier": reference.brier_score_loss(labels, scores if classes > 2 else scores[:, 1]),
        "loss": reference.log_loss(labels, scores),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    if classes == 2:
        assert found["auroc"] == pytest.approx(reference.roc_auc_score(labels, scores[:, 1]), abs=1e-12)


def test_multi_label_equals_scikit_learn(multi_label):
    labels, scores = multi_label(203, 4)
    found = classification_metrics(labels, scores, list("abcd"), MULTI)
    predicted = (scores >= 0.5).astype(int)

    def per_label(metric):
        return np.mean([metric(labels[:, column], predicted[:, column]) for column in range(4)])

    expected = {
        "auroc": reference.roc_auc_score(labels, scores, average="macro"),
        "auprc": reference.average_precision_score(labels, scores, average="macro"),
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": per_label(reference.balanced_accuracy_score),
        "f1_macro": reference.f1_score(labels, predicted, average="macro"),
        "precision_macro": reference.precision_score(labels, predicted, average="macro"),
        "recall_macro": reference.recall_score(labels, predicted, average="macro"),
        "kappa": per_label(reference.cohen_kappa_score),
        "quadratic_kappa": per_label(reference.cohen_kappa_score),
        "mcc": per_label(reference.matthews_corrcoef),
        "hamming": reference.hamming_loss(labels, predicted),
        "jaccard": reference.jaccard_score(labels, predicted, average="macro"),
        "brier": np.mean([reference.brier_score_loss(labels[:, column], scores[:, column]) for column in range(4)]),
        "loss": np.mean([reference.log_loss(labels[:, column], scores[:, column]) for column in range(4)]),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_a_lone_label_is_scored_as_its_two_classes(multi_label):
    labels, scores = multi_label(80, 1)
    found = classification_metrics(labels, scores, ["dr"], MULTI)
    predicted = scores[:, 0] >= 0.5
    assert found["f1_macro"] == pytest.approx(reference.f1_score(labels[:, 0], predicted))
    assert found["kappa"] == pytest.approx(reference.cohen_kappa_score(labels[:, 0], predicted))


def test_perfect_predictions():
    labels = np.array([0, 1, 2, 2, 1, 0])
    found = classification_metrics(labels, np.eye(3)[labels], list("abc"))
    zero = {"hamming", "ece", "brier", "loss"}
    assert found == pytest.approx({name: 0.0 if name in zero else 1.0 for name in found}, abs=1e-12)


def test_random_scores_have_an_auroc_of_a_half(single_label):
    labels, scores = single_label(6000, 3, signal=0.0)
    found = classification_metrics(labels, scores, list("abc"))
    # Standard error per class about sqrt(1/12 (1/2000 + 1/4000)) = 0.008.
    assert found["auroc"] == pytest.approx(0.5, abs=0.02)
    assert found["auprc"] == pytest.approx(1 / 3, abs=0.03)
    assert found["kappa"] == pytest.approx(0, abs=0.03)


def test_an_absent_class_is_undefined_and_named_once(single_label):
    labels, scores = single_label(60, 3)
    labels[labels == 2] = 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = classification_metrics(labels, scores, ["normal", "mild", "severe"])
    assert [str(warning.message) for warning in caught] == [
        "auroc and auprc are undefined for severe: among the 60 labels all or none are of that class; "
        "the averages are over the other 2"
    ]
    assert found["auroc/severe"] is None and found["auprc/severe"] is None
    assert found["auroc"] == pytest.approx((found["auroc/normal"] + found["auroc/mild"]) / 2)
    others = {name: value for name, value in found.items() if not name.endswith("/severe")}
    assert all(np.isfinite(value) for value in others.values())
    assert found["f1_macro"] == pytest.approx(
        reference.f1_score(labels, scores.argmax(axis=1), average="macro", zero_division=0)
    )


def test_one_class_only_leaves_ranking_and_agreement_undefined(single_label):
    _, scores = single_label(20, 2)
    with pytest.warns(UserWarning, match="undefined for a, b: .* so are their averages") as caught:
        found = classification_metrics(np.zeros(20, int), scores, ["a", "b"])
    assert len(caught) == 1
    undefined = {name for name, value in found.items() if value is None}
    ranking = {"auroc", "auprc", "auroc/a", "auroc/b", "auprc/a", "auprc/b"}
    assert undefined == ranking | {"kappa", "quadratic_kappa", "mcc"}
    assert found["accuracy"] == pytest.approx((scores[:, 0] > scores[:, 1]).mean())


def test_a_label_that_never_holds_is_left_out_of_the_averages(multi_label):
    labels, scores = multi_label(80, 3)
    labels[:, 1], scores[:, 1] = 0, 0.1
    with pytest.warns(UserWarning, match="undefined for b: ") as caught:
        found = classification_metrics(labels, scores, list("abc"), MULTI)
    assert len(caught) == 1
    rest = classification_metrics(labels[:, [0, 2]], scores[:, [0, 2]], list("ac"), MULTI)
    for name in ("auroc", "auprc", "kappa", "mcc", "f1_macro", "jaccard", "balanced_accuracy"):
        assert found[name] == pytest.approx(rest[name])
    with pytest.warns(UserWarning, match="undefined"):
        empty = classification_metrics(np.zeros((4, 2)), np.full((4, 2), 0.1), ["a", "b"], MULTI)
    assert empty["f1_macro"] is None and empty["auroc"] is None and empty["accuracy"] == 1


def test_every_class_alone_gives_no_nan():
    for labels in (np.zeros(1, int), np.ones(3, int)):
        with pytest.warns(UserWarning, match="undefined"):
            found = classification_metrics(labels, np.full((len(labels), 3), 1 / 3), list("abc"))
        assert all(value is None or np.isfinite(value) for value in found.values())


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [[2.0, -1.0], [0.0, 1.0]], r"probability 2 is outside \[0, 1\]; apply softmax"),
        ([0, 1], [[0.9, 0.9], [0.0, 1.0]], "probabilities of row 0 sum to 1.8; single-label rows sum to 1"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "label 2 is not accepted; labels are whole numbers from 0 to 1"),
        ([0, 0.5], [[0.5, 0.5], [0.5, 0.5]], "label 0.5 is not accepted"),
        ([0], [[0.5, 0.5], [0.5, 0.5]], r"labels have shape \(1,\); \(2,\) fits 2 rows"),
        ([0, 1], [[0.5, np.nan], [0.5, 0.5]], "probabilities hold 1 values that are NaN"),
        ([0, 1], [[0.5, 0.2, 0.3]] * 2, r"probabilities have shape \(2, 3\); \(N, 2\) fits the 2 classes"),
        ([], np.zeros((0, 2)), "at least one row is needed"),
        (["a", "b"], [[0.5, 0.5], [0.5, 0.5]], "labels must be an array of numbers"),
    ],
)
def test_bad_input_is_refused_in_one_line(labels, scores, message):
    with pytest.raises(RetFoundError, match=message) as error:
        compute_metrics(SINGLE, labels, scores, ["a", "b"])
    assert "\n" not in str(error.value)


def test_bad_names_and_problem_types_are_refused():
    with pytest.raises(RetFoundError, match="problem_type='ordinal' is not accepted here; accepted: single_label"):
        compute_metrics("ordinal", [0], [[1.0, 0.0]], ["a", "b"])
    with pytest.raises(RetFoundError, match="at least 2 different names"):
        compute_metrics(SINGLE, [0], [[1.0, 0.0]], ["a", "a"])
    with pytest.raises(RetFoundError, match=r"labels have shape \(2,\); \(2, 2\) fits"):
        compute_metrics(MULTI, [0, 1], [[0.5, 0.5], [0.5, 0.5]], ["a", "b"])


def test_half_precision_probabilities_are_accepted(single_label):
    import torch

    labels, scores = single_label(50, 5)
    rounded = torch.from_numpy(scores).bfloat16().float().numpy()
    exact, found = (compute_metrics(SINGLE, labels, values, list("abcde")) for values in (scores, rounded))
    assert found["loss"] == pytest.approx(exact["loss"], abs=0.01)
