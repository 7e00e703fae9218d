"""Metrics: equal to scikit-learn and scipy, also on repeated rows; undefined ones; a row added at run time."""

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn import metrics as reference

from retfound_hf.errors import BadArgumentError
from retfound_hf.evaluation.metrics import METRICS, Metric, lower_is_better, metric_of, metric_title
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.evaluation.report import ReportArguments, compute_metrics, format_table, write_report
from retfound_hf.vocabulary import MULTI_LABEL, REGRESSION, SINGLE_LABEL

DESIGN = {
    "auroc", "auprc", "accuracy", "balanced_accuracy", "f1_macro", "precision_macro", "recall_macro", "kappa",
    "quadratic_kappa", "mcc", "hamming", "jaccard", "ece", "brier", "loss",
}  # fmt: skip
PER_CLASS = ("auroc", "auprc", "f1", "precision", "recall")


def test_names_are_those_of_the_design(single_label, multi_label):
    for problem, (labels, scores) in ((SINGLE_LABEL, single_label(60, 3)), (MULTI_LABEL, multi_label(60, 3))):
        found = compute_metrics(problem, labels, scores, ["a", "b", "c"])
        assert set(found) == DESIGN | {f"{name}/{label}" for name in PER_CLASS for label in "abc"}
        # Of three classes without an order there is no quadratic kappa.
        lacking = {"quadratic_kappa"} if problem == SINGLE_LABEL else set()
        assert {name for name, value in found.items() if type(value) is not float} == lacking


def test_quadratic_kappa_takes_the_order_that_is_known(single_label):
    labels, scores = single_label(203, 4)
    names, predicted = ["mild", "none", "severe", "moderate"], scores.argmax(axis=1)
    order = ["none", "mild", "moderate", "severe"]
    assert compute_metrics(SINGLE_LABEL, labels, scores, names)["quadratic_kappa"] is None
    found = compute_metrics(SINGLE_LABEL, labels, scores, names, order)["quadratic_kappa"]
    grade = np.array([order.index(name) for name in names])
    assert found == pytest.approx(reference.cohen_kappa_score(grade[labels], grade[predicted], weights="quadratic"))
    # The names of grades in the order of the alphabet, as a folder of classes lists them.
    names = ["stage 1", "stage 10", "stage 2", "stage 3"]
    grade = np.array([0, 3, 1, 2])
    found = compute_metrics(SINGLE_LABEL, labels, scores, names)["quadratic_kappa"]
    assert found == pytest.approx(reference.cohen_kappa_score(grade[labels], grade[predicted], weights="quadratic"))


def test_two_classes_by_hand():
    # "yes" scores .9 .8 .3, "no" .6 .2: of the 6 pairs 5 are in order. From the top, "yes" is at ranks 1, 2 and 4,
    # with precisions 1/1, 2/2 and 3/4; from the bottom, "no" is at ranks 1 and 3, with 1/1 and 2/3.
    labels = [1, 1, 0, 1, 0]
    positive = np.array([0.9, 0.8, 0.6, 0.3, 0.2])
    found = compute_metrics(SINGLE_LABEL, labels, np.c_[1 - positive, positive], ["no", "yes"])
    assert [found[name] for name in ("auroc", "auroc/no", "auroc/yes")] == pytest.approx([5 / 6] * 3)
    assert found["auprc/yes"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert found["auprc/no"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["auprc"] == pytest.approx((found["auprc/yes"] + found["auprc/no"]) / 2)
    assert [found[f"{name}/yes"] for name in ("recall", "precision", "f1")] == pytest.approx([2 / 3] * 3)
    assert [found[f"{name}/no"] for name in ("recall", "precision", "f1")] == pytest.approx([1 / 2] * 3)
    # Predicted 1 1 1 0 0: 3 of 5 right; kappa = (3/5 - 13/25) / (1 - 13/25).
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["hamming"] == pytest.approx(2 / 5)
    assert [found["kappa"], found["quadratic_kappa"]] == pytest.approx([(0.6 - 0.52) / 0.48] * 2)
    assert [found["balanced_accuracy"], found["recall_macro"]] == pytest.approx([(2 / 3 + 1 / 2) / 2] * 2)
    assert found["jaccard"] == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert found["brier"] == pytest.approx((0.1**2 + 0.2**2 + 0.6**2 + 0.7**2 + 0.2**2) / 5)
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4, 0.3, 0.8]).mean())
    # One row per bin of 1/15: confidences .9 .8 .6 .7 .8, the two of .8 share a bin and both are right.
    assert found["ece"] == pytest.approx((0.1 + 2 * 0.2 + 0.6 + 0.7) / 5)


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_single_label_equals_scikit_learn(single_label, classes):
    labels, scores = single_label(203, classes)
    found = compute_metrics(SINGLE_LABEL, labels, scores, [f"c{index}" for index in range(classes)])
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


@pytest.mark.parametrize("columns", [1, 4])
def test_multi_label_equals_scikit_learn(multi_label, columns):
    labels, scores = multi_label(203, columns)
    found = compute_metrics(MULTI_LABEL, labels, scores, list("abcd")[:columns])
    predicted = (scores >= 0.5).astype(int)

    def per_label(metric, predictions=predicted, **options):
        pairs = zip(labels.T, predictions.T, strict=True)
        return np.mean([metric(true, column, **options) for true, column in pairs])

    expected = {
        "auroc": reference.roc_auc_score(labels, scores, average="macro"),
        "auprc": reference.average_precision_score(labels, scores, average="macro"),
        "accuracy": (labels == predicted).all(axis=1).mean(),
        "balanced_accuracy": per_label(reference.balanced_accuracy_score),
        "f1_macro": per_label(reference.f1_score),
        "precision_macro": per_label(reference.precision_score),
        "recall_macro": per_label(reference.recall_score),
        "kappa": per_label(reference.cohen_kappa_score),
        "quadratic_kappa": per_label(reference.cohen_kappa_score),
        "mcc": per_label(reference.matthews_corrcoef),
        "hamming": reference.hamming_loss(labels, predicted),
        "jaccard": per_label(reference.jaccard_score),
        "brier": per_label(reference.brier_score_loss, scores),
        "loss": per_label(reference.log_loss, scores),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)


def test_regression_by_hand():
    # Errors 1, 0, -1, 2: squares sum to 6; labels 1 2 3 4 have a total sum of squares of 5.
    found = compute_metrics(REGRESSION, [1, 2, 3, 4], [2, 2, 2, 6], ["age"])
    assert set(found) == {"mae", "mse", "rmse", "r2", "pearson", "spearman", "loss"}
    assert found["mae"] == 1 and found["mse"] == found["loss"] == 1.5
    assert found["rmse"] == pytest.approx(1.5**0.5) and found["r2"] == pytest.approx(1 - 6 / 5)
    assert found["pearson"] == pytest.approx(6 / (5 * 12) ** 0.5)
    assert found["spearman"] == pytest.approx(3 / (5 * 3) ** 0.5)  # ranks 1 2 3 4 and 2 2 2 4


def test_regression_equals_scikit_learn_and_scipy_per_target():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(50, 2))
    predictions = np.round(labels + rng.normal(size=(50, 2)), 1)
    found = compute_metrics(REGRESSION, labels, predictions, ["age", "bmi"])
    for column, name in enumerate(("age", "bmi")):
        pair = labels[:, column], predictions[:, column]
        assert found[f"mae/{name}"] == pytest.approx(reference.mean_absolute_error(*pair))
        assert found[f"r2/{name}"] == pytest.approx(reference.r2_score(*pair))
        assert found[f"pearson/{name}"] == pytest.approx(stats.pearsonr(*pair).statistic)
        assert found[f"spearman/{name}"] == pytest.approx(stats.spearmanr(*pair).statistic)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(labels, predictions))
    assert found["r2"] == pytest.approx(reference.r2_score(labels, predictions))


def test_perfect_predictions():
    labels = np.array([0, 1, 2, 2, 1, 0])
    found = compute_metrics(SINGLE_LABEL, labels, np.eye(3)[labels], list("012"))
    assert found == pytest.approx({name: 0.0 if lower_is_better(name) else 1.0 for name in found}, abs=1e-12)


def undefined(*arguments):
    """Metrics, the names of those undefined, and the text of the one warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = compute_metrics(*arguments)
    assert len(caught) == 1
    assert all(value is None or np.isfinite(value) for value in found.values())
    return found, {name for name, value in found.items() if value is None}, str(caught[0].message)


def test_an_absent_class_is_undefined_and_named_once(single_label):
    labels, scores = single_label(60, 3)
    labels[labels == 2] = 0
    found, missing, warning = undefined(SINGLE_LABEL, labels, scores, ["normal", "mild", "severe"])
    assert (
        missing == {"auroc/severe", "auprc/severe", "recall/severe", "quadratic_kappa"}
        and "severe" in warning
        and "normal" not in warning
    )
    assert found["auroc"] == pytest.approx((found["auroc/normal"] + found["auroc/mild"]) / 2)
    assert found["f1_macro"] == pytest.approx(
        reference.f1_score(labels, scores.argmax(axis=1), average="macro", zero_division=0)
    )


def test_one_class_only_leaves_ranking_and_agreement_undefined(single_label):
    _, scores = single_label(20, 2)
    found, missing, _ = undefined(SINGLE_LABEL, np.zeros(20, int), scores, ["a", "b"])
    ranking = {"auroc", "auprc", "auroc/a", "auroc/b", "auprc/a", "auprc/b", "recall/b"}
    assert missing == ranking | {"kappa", "quadratic_kappa", "mcc"}
    assert found["accuracy"] == pytest.approx((scores[:, 0] > scores[:, 1]).mean())
    for labels in (np.zeros(1, int), np.ones(3, int)):
        undefined(SINGLE_LABEL, labels, np.full((len(labels), 3), 1 / 3), list("abc"))


def test_a_label_that_never_holds_is_left_out_of_the_averages(multi_label):
    labels, scores = multi_label(80, 3)
    labels[:, 1], scores[:, 1] = 0, 0.1
    found, *_ = undefined(MULTI_LABEL, labels, scores, list("abc"))
    rest = compute_metrics(MULTI_LABEL, labels[:, [0, 2]], scores[:, [0, 2]], list("ac"))
    for name in ("auroc", "auprc", "kappa", "mcc", "f1_macro", "jaccard", "balanced_accuracy"):
        assert found[name] == pytest.approx(rest[name])
    empty, *_ = undefined(MULTI_LABEL, np.zeros((4, 2)), np.full((4, 2), 0.1), ["a", "b"])
    assert empty["f1_macro"] is None and empty["auroc"] is None and empty["accuracy"] == 1


@pytest.mark.parametrize("labels", [np.full(7, 0.1), np.array([3.0])])
def test_labels_that_do_not_vary_leave_correlations_undefined(labels):
    _, missing, warning = undefined(REGRESSION, labels, labels + np.arange(len(labels)), ["age"])
    assert missing == {"r2", "pearson", "spearman"} and "age" in warning


def test_constant_predictions_have_an_r2_but_no_correlation():
    found, missing, _ = undefined(REGRESSION, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0], ["age"])
    assert found["r2"] == 0 and missing == {"pearson", "spearman"}
    several, _, _ = undefined(REGRESSION, np.c_[[1.0, 2, 3], [1.0, 2, 3]], np.c_[[2.0] * 3, [1.0, 2, 4]], ["a", "b"])
    assert several["pearson"] == several["pearson/b"] and several["pearson/a"] is None


def test_names_of_rows():
    assert metric_of("auroc/left/right").name == "auroc"  # a class name may hold a slash
    assert metric_title("recall/amd") == "Sensitivity (recall), amd" and metric_of("f1/amd").name == "f1_macro"
    assert metric_title("auprc", several=True) == "AUPRC, mean of classes"
    assert metric_title("mae", several=True) == "MAE, mean of targets"
    assert metric_title("kappa", several=True) == metric_title("kappa")
    assert metric_title("auroc/amd") == "AUROC, amd" and metric_title("seconds") == "seconds"
    assert lower_is_better("mae/age") and not lower_is_better("auroc") and not lower_is_better("selection")
    with pytest.raises(BadArgumentError) as error:
        metric_of("aurocs")
    assert error.value.value == "aurocs" and "auroc" in error.value.accepted


@pytest.fixture
def specificity(monkeypatch):
    """A metric per class that is added to the table, as a user's script does."""

    def function(drawn):
        hit, true, said = drawn.counts
        return 1 - (said - hit) / (drawn.total[:, None] - true)

    row = Metric("specificity", "Specificity", True, (SINGLE_LABEL, MULTI_LABEL), function, per_class=True)
    monkeypatch.setitem(METRICS, row.name, row)
    return row


def test_a_row_added_at_run_time_comes_out_everywhere(specificity, single_label, tmp_path):
    labels, scores = single_label(90, 3)
    columns = pd.DataFrame({"camera": np.repeat(["A", "B"], 45)})
    predictions = Predictions(None, scores, labels, list("abc"), SINGLE_LABEL, np.arange(90) // 2, columns=columns)
    found = predictions.metrics()
    predicted = scores.argmax(axis=1)
    by_hand = [((predicted != c) & (labels != c)).sum() / (labels != c).sum() for c in range(3)]
    assert [found[f"specificity/{label}"] for label in "abc"] == pytest.approx(by_hand)
    assert found["specificity"] == pytest.approx(np.mean(by_hand))
    estimate = predictions.intervals(resamples=100)["specificity"]
    assert estimate.low < estimate.value < estimate.high and estimate.n == 45
    groups = predictions.subgroups(["camera"], resamples=100).set_index(["metric", "group"])
    members = predictions.select(np.flatnonzero(predictions.columns["camera"] == "A"))
    assert groups.loc[("specificity", "A"), "value"] == pytest.approx(members.metrics()["specificity"])
    assert groups.loc["specificity", "p_value"].notna().sum() == 1  # the gap
    metrics = write_report(
        tmp_path, predictions, ReportArguments(confidence_intervals=True, resamples=100), plots=False
    )
    assert metrics["specificity_ci95"] == [estimate.low, estimate.high] and "Specificity" in format_table(
        metrics, SINGLE_LABEL, list("abc")
    )
    assert "specificity/b" in (tmp_path / "intervals.csv").read_text()
