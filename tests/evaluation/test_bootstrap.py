"""The bootstrap: the same numbers as on repeated rows, patients that move together, intervals by hand and by scipy."""

import warnings
from functools import partial

import numpy as np
import pytest
from scipy.special import expit, softmax

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.evaluation.bootstrap import Estimate, bootstrap, interval, patients_of
from retfound_hf.evaluation.intervals import Part, mean_interval, scaled_part
from retfound_hf.evaluation.metrics import weighted_metrics
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.evaluation.report import compute_metrics
from retfound_hf.vocabulary import MULTI_LABEL as MULTI
from retfound_hf.vocabulary import REGRESSION as NUMBERS
from retfound_hf.vocabulary import SINGLE_LABEL as SINGLE


def metric_intervals(kind, labels, scores, names, patients=None, resamples=2000, seed=0):
    return Predictions(None, scores, labels, names, kind, patients).intervals(resamples, seed)


def some_set(rng: np.random.Generator, kind: str, rows: int = 40):
    """Labels and scores with many ties, of 1 to 4 classes or targets."""
    if kind == SINGLE:
        classes = int(rng.integers(2, 5))
        labels = rng.integers(classes, size=rows)
        scores = softmax(rng.normal(size=(rows, classes)).round() + (labels[:, None] == np.arange(classes)), axis=1)
    elif kind == MULTI:
        classes = int(rng.integers(1, 4))
        labels = (rng.random((rows, classes)) < 0.4).astype(int)
        scores = expit((rng.normal(size=labels.shape) + labels).round(1))
    else:
        classes = int(rng.integers(1, 4))
        labels = rng.normal(60, 10, size=(rows, classes)).round()
        scores = (labels + rng.normal(0, 8, size=labels.shape)).round()
    return labels, scores, [f"class {index}" for index in range(classes)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [SINGLE, MULTI, NUMBERS])
def test_weights_count_as_repeated_rows(kind):
    """Every metric of a resample equals scikit-learn's on the rows repeated as often as they were drawn."""
    rng = np.random.default_rng(0)
    compared = 0
    for _ in range(30):
        labels, scores, names = some_set(rng, kind)
        predictions = Predictions(None, scores, labels, names, kind)
        truth = predictions.truth
        weights = rng.multinomial(len(labels), np.full(len(labels), 1 / len(labels)), size=3).astype(float)
        found = weighted_metrics(predictions.rows, predictions.metric_names, weights)
        for resample, weight in enumerate(weights):
            rows = np.repeat(np.arange(len(labels)), weight.astype(int))
            if truth is not None and (truth[rows].any(axis=0) != truth.any(axis=0)).any():
                continue  # a class was lost: see the test of what is undefined
            expected = compute_metrics(kind, labels[rows], scores[rows], names)
            assert set(expected) == set(found)
            for name, value in expected.items():
                assert found[name][resample] == pytest.approx(np.nan if value is None else value, nan_ok=True), name
                compared += 1
    assert compared > 500


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [SINGLE, MULTI, NUMBERS])
def test_every_metric_gets_an_interval_around_it(kind):
    labels, scores, names = some_set(np.random.default_rng(3), kind, rows=150)
    found = metric_intervals(kind, labels, scores, names, resamples=200)
    expected = compute_metrics(kind, labels, scores, names)
    assert list(found) == list(expected)
    for name, estimate in found.items():
        assert estimate.value == expected[name]
        assert name == "ece" or estimate.low < estimate.value < estimate.high, name
        of_some = name.startswith(("recall/", "precision/"))  # shares of the rows of a class, or called it
        assert (estimate.n < 150 if of_some else estimate.n == 150) and estimate.undefined == 0


def test_the_seed_decides_and_so_do_the_patients():
    labels, scores, names = some_set(np.random.default_rng(0), NUMBERS, rows=60)
    first, again = (metric_intervals(NUMBERS, labels, scores, names, resamples=200, seed=1)["mae"] for _ in range(2))
    other = metric_intervals(NUMBERS, labels, scores, names, resamples=200, seed=2)["mae"]
    assert first == again and (first.low, first.high) != (other.low, other.high)
    assert metric_intervals(NUMBERS, labels, scores, names, np.arange(60) // 2, 200)["mae"].n == 30


def test_copies_of_a_patients_image_add_no_information():
    """Ten copies of every image: as wide as without them by patient, and far narrower if they passed for patients."""
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(2, size=80), rng.random((80, 1))
    scores = np.c_[1 - scores, scores]
    many = np.repeat(np.arange(80), 10)
    single = metric_intervals(SINGLE, labels, scores, ["a", "b"])
    clustered = metric_intervals(SINGLE, labels[many], scores[many], ["a", "b"], many)
    naive = metric_intervals(SINGLE, labels[many], scores[many], ["a", "b"])
    for name in ("auroc", "accuracy", "brier"):
        assert clustered[name].value == pytest.approx(single[name].value)
        assert (clustered[name].low, clustered[name].high) == pytest.approx((single[name].low, single[name].high))
        width = [found[name].high - found[name].low for found in (single, naive)]
        assert width[1] < 0.5 * width[0]


def test_unknown_patients_stand_for_themselves():
    units = patients_of(["a", None, "b", "a", float("nan")], 5)
    assert units.count == 4
    assert units.row[0] == units.row[3] and len(set(units.row)) == 4
    for names in (["a", "b"], ["a", "a", "a"]):
        with pytest.raises(BadDataError):
            patients_of(names, 3)


def test_strata_keep_each_class_and_a_lone_patient_joins_others():
    # Class 2 has two patients, one of whom also has class 0; class 1 has one.
    classes = np.eye(3, dtype=bool)[[0, 0, 0, 2, 2, 0, 1, 0]]
    units = patients_of(list("abcddeff"), 8, classes | (np.eye(3, dtype=bool)[[0, 0, 0, 0, 0, 2, 1, 0]]))
    named = dict(zip("abcdef", units.stratum, strict=True))
    assert named["d"] == named["e"] != named["a"] == named["b"] == named["c"]
    assert named["f"] == named["d"]  # the smallest of the strata
    for weights in units.draws(50, seed=0):
        assert (weights[:, 3] == weights[:, 4]).all()  # one patient's rows move together
        assert (weights[:, [3, 5, 6]].sum(axis=1) == 3).all() and (weights[:, :3].sum(axis=1) == 3).all()


def test_draws_do_not_depend_on_the_blocks(monkeypatch):
    units = patients_of(np.arange(30) // 2, 30)
    whole = np.concatenate(list(units.draws(20, seed=5)))
    monkeypatch.setattr("retfound_hf.evaluation.bootstrap.BLOCK", 90)
    parts = list(units.draws(20, seed=5))
    assert len(parts) == 7 and (np.concatenate(parts) == whole).all()
    assert (whole.sum(axis=1) == 30).all()


def test_the_jackknife_leaves_each_patient_out_once(monkeypatch):
    units = patients_of(np.arange(30) // 2, 30, np.eye(2, dtype=bool)[(np.arange(30) < 8).astype(int)])
    strata, weights = units.left_out()
    weights = np.concatenate(list(weights))
    assert weights.shape == (15, 30) and ((weights == 0).sum(axis=0) == 1).all() and len(strata) == 15
    monkeypatch.setattr("retfound_hf.evaluation.bootstrap.JACKKNIFE", 5)
    strata, weights = units.left_out()
    weights = np.concatenate(list(weights))
    assert ((weights == 0).sum(axis=0) == 1).all()
    assert len(strata) == len(weights) == 2 + 4  # groups of up to three patients of one stratum
    for stratum, weight in zip(strata, weights, strict=True):
        assert (units.stratum[units.row[weight == 0]] == stratum).all()


def test_undefined_resamples_are_counted():
    """One patient of the rare class among unlabelled others: about 1/e of free draws lose it."""
    rng = np.random.default_rng(0)
    labels = np.zeros((40, 1), int)
    labels[0] = 1
    scores = rng.random((40, 1))
    statistic = partial(weighted_metrics, Predictions(None, scores, labels, ["rare"], MULTI).rows, ["auroc"])
    values = {"auroc": float(statistic(np.ones((1, 40)))["auroc"][0])}
    found = bootstrap(statistic, values, patients_of(None, 40), 2000)["auroc"]
    assert found.undefined == pytest.approx((1 - 1 / 40) ** 40, abs=0.03)
    # Two patients of it, drawn within their class, are never lost.
    labels[1] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metric_intervals(MULTI, labels, scores, ["rare"])["auroc"].undefined == 0


@pytest.mark.filterwarnings("ignore:auroc, auprc are undefined")
def test_where_there_is_no_interval():
    perfect = metric_intervals(SINGLE, [0, 1] * 10, np.eye(2)[[0, 1] * 10], ["a", "b"], resamples=100)
    assert perfect["auroc"].value == perfect["auroc"].high == 1 and 0.5 < perfect["auroc"].low < 1
    assert perfect["kappa"].value == 1 and perfect["kappa"].interval is None  # without any patient it is the same
    one_class = metric_intervals(SINGLE, [0] * 9, np.full((9, 2), 0.5), ["a", "b"], resamples=100)
    assert one_class["auroc"].value is None and one_class["auroc"].interval is None
    with pytest.raises(BadArgumentError):
        metric_intervals(SINGLE, [0, 1], np.eye(2), ["a", "b"], resamples=99)


def test_bca_and_percentiles_equal_scipys():
    """The mean of 40 skewed values, on the same resamples up to their draw."""
    from scipy import stats

    values = np.random.default_rng(0).exponential(size=40)
    options = {"n_resamples": 40_000, "vectorized": True, "rng": np.random.default_rng(1)}

    def statistic(weights):
        return {"mean": weights @ values / weights.sum(axis=1)}

    for ours, theirs in (("bca", "BCa"), ("percentile", "percentile")):
        found = bootstrap(statistic, {"mean": values.mean()}, patients_of(None, 40), 40_000, method=ours)["mean"]
        expected = stats.bootstrap((values,), np.mean, method=theirs, **options).confidence_interval
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.012)


def test_the_jackknife_on_the_logit_scale_by_hand():
    """Logits of 0.8 and of 0.75, 0.8, 0.8, 0.85, and t on as many degrees of freedom as rarer patients less one."""
    left_out = np.array([0.75, 0.8, 0.8, 0.85])
    logits = np.log(left_out / (1 - left_out))
    found = scaled_part(0.8, left_out, "logit", 3, 4).estimate
    half = 4.302653 * (3 * logits.var()) ** 0.5
    assert np.log([found.low / (1 - found.low), found.high / (1 - found.high)]) == pytest.approx(
        np.log(4) + np.array([-half, half])
    )
    for value, others in ((0.8, np.r_[left_out, 1.0]), (1.0, left_out), (0.8, np.full(4, 0.8))):
        none = scaled_part(value, others, "logit", 3, 4).estimate
        assert none.interval is None and none.method.startswith("no interval")


def test_one_patient_that_carries_the_variance_brings_no_interval():
    """A loss of 0.1 for all but one, without whom it is 0.05: an end would be infinite."""
    none = scaled_part(0.1, np.r_[0.05, np.full(20, 0.1)], "log", 20, 21).estimate
    assert none.interval is None and none.value == 0.1 and none.method.startswith("no interval")


def test_few_patients_of_a_class_bring_wide_intervals_or_none_and_why():
    """Of 100 patients 4 are ill; one alone gives AUROC and balanced accuracy no interval."""
    rng = np.random.default_rng(0)
    labels, scores = (np.arange(200) // 2 < 4).astype(int), rng.random(200) * 0.7
    scores += 0.25 * labels
    found = metric_intervals(SINGLE, labels, np.c_[1 - scores, scores], ["no", "ill"], np.arange(200) // 2, 200)
    for name in ("auroc", "auroc/ill", "balanced_accuracy", "accuracy", "brier", "auprc/ill"):
        assert found[name].low < found[name].value < found[name].high, name
    for name, needed in (("f1_macro", 10), ("kappa", 10), ("mcc", 10), ("precision_macro", 20)):
        assert found[name].interval is None and f"{needed} are needed" in found[name].method
    one = labels * (np.arange(200) < 2)
    found = metric_intervals(SINGLE, one, np.c_[1 - scores, scores], ["no", "ill"], np.arange(200) // 2, 200)
    assert all(found[name].interval is None for name in ("auroc", "auprc", "balanced_accuracy", "brier"))
    assert found["accuracy"].interval is not None


def test_a_mean_of_classes_is_combined_from_them():
    """Independent halves: the distances add in squares; two classes of one task are one number."""
    rng = np.random.default_rng(0)
    labels, scores, names = some_set(rng, SINGLE, rows=120)
    found = metric_intervals(SINGLE, labels, scores, names, resamples=100)
    if len(names) == 2:
        assert found["auroc"].interval == pytest.approx(found["auroc/class 1"].interval)
    parts = [Part(Estimate(0.8, 0.6, 0.9, 9, "x"), np.array(u)) for u in ([1.0, 0.0], [0.0, 1.0])]
    mean = mean_interval(0.8, parts, 2, 9)
    assert (mean.low, mean.high) == pytest.approx((0.8 - 0.2 / 2**0.5, 0.8 + 0.1 / 2**0.5))
    mean = mean_interval(0.8, [parts[0], parts[0]], 2, 9)
    assert (mean.low, mean.high) == pytest.approx((0.6, 0.9))


def test_percentiles_by_hand():
    drawn = np.r_[np.arange(1000.0), [np.nan] * 1000]
    found = interval(500.0, drawn, 7)
    assert (found.low, found.high) == pytest.approx((24.975, 974.025))
    assert (found.n, found.undefined) == (7, 0.5)
