import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.evaluation.linear_probe import fit_linear_probe, folds

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def planted(rows, classes, signal, seed, width=40):
    """float32 features of odd scales with the class in the first columns, and the classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    features = rng.normal(size=(rows, width))
    features[np.arange(rows), labels] += signal
    return (features * np.geomspace(1e-3, 1e3, width) + 5).astype(np.float32), labels


def logits(probe, features):
    return features.astype(np.float64) @ probe.weight.T.astype(np.float64) + probe.bias


@pytest.mark.parametrize("classes", [2, 4])
def test_folded_head_equals_the_scikit_learn_pipeline(classes):
    train, labels = planted(120, classes, 1.0, 0)
    val, val_labels = planted(80, classes, 1.0, 1)
    probe = fit_linear_probe(train, labels, val, val_labels, SINGLE, strengths=[20.0])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1 / 20, tol=1e-10, max_iter=10000))
    pipeline.fit(train.astype(np.float64), labels)
    assert probe.weight.shape == (classes, 40) and probe.bias.shape == (classes,)
    assert probe.weight.dtype == probe.bias.dtype == np.float32
    found = softmax(logits(probe, val), axis=1)
    np.testing.assert_allclose(found, pipeline.predict_proba(val.astype(np.float64)), atol=1e-4)


def test_multi_label_equals_one_logistic_regression_per_label():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(150, 10)).astype(np.float32)
    targets = (features[:, :3] + rng.normal(size=(150, 3)) > 0.5).astype(int)
    probe = fit_linear_probe(features, targets, features, targets, MULTI, strengths=[5.0], class_weights=[1, 2, 3])
    scaled = StandardScaler().fit_transform(features.astype(np.float64))
    for column, weight in enumerate((1, 2, 3)):
        model = LogisticRegression(C=1 / 5, tol=1e-10, max_iter=10000, class_weight={0: 1, 1: weight})
        expected = model.fit(scaled, targets[:, column]).predict_proba(scaled)[:, 1]
        np.testing.assert_allclose(expit(logits(probe, features)[:, column]), expected, atol=1e-4)


def test_regression_equals_ridge_and_finds_the_weights():
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, size=(300, 6)).astype(np.float32)
    weight = np.array([[1.0, -2.0, 0, 0, 0, 0.5], [0, 0, 3.0, 0, 0, 0]])
    targets = features @ weight.T + 60 + rng.normal(size=(300, 2))
    probe = fit_linear_probe(features[:200], targets[:200], features[200:], targets[200:], "regression")
    pipeline = make_pipeline(StandardScaler(), Ridge(alpha=probe.strength)).fit(features[:200], targets[:200])
    np.testing.assert_allclose(logits(probe, features[200:]), pipeline.predict(features[200:]), atol=1e-3)
    np.testing.assert_allclose(probe.weight, weight, atol=0.2)
    assert probe.val_score == pytest.approx(-(1 / targets[:200].var(axis=0)).mean(), rel=0.3)
    one = fit_linear_probe(features[:200], targets[:200, 0], features[200:], targets[200:, 0], "regression")
    assert one.weight.shape == (1, 6) and one.bias.shape == (1,)


def test_the_optimum_is_reached():
    """At the optimum of mean loss + penalty the gradient vanishes: more features than rows, weakest penalty."""
    train, labels = planted(60, 3, 1.0, 0, width=100)
    probe = fit_linear_probe(train, labels, train, labels, SINGLE, strengths=[0.01])
    features = train.astype(np.float64)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    residual = softmax(logits(probe, train), axis=1) - np.eye(3)[labels]
    gradient = (residual.T @ standard + 0.01 * probe.weight * features.std(axis=0)) / 60
    assert np.abs(gradient).max() < 1e-5 and np.abs(residual.mean(axis=0)).max() < 1e-5


def test_a_planted_signal_is_found_and_none_is_not_invented():
    for signal, low, high in ((1.5, 0.8, 1.0), (0.0, 0.42, 0.58)):
        train, labels = planted(300, 3, signal, 0)
        val, val_labels = planted(300, 3, signal, 1)
        test, test_labels = planted(900, 3, signal, 2)
        probe = fit_linear_probe(train, labels, val, val_labels, SINGLE)
        scores = softmax(logits(probe, test), axis=1)
        assert low < roc_auc_score(np.eye(3)[test_labels], scores) < high


def test_path_runs_from_strong_to_weak_and_the_choice_is_its_best():
    train, labels = planted(100, 2, 0.8, 0)
    val, val_labels = planted(200, 2, 0.8, 1)
    probe = fit_linear_probe(train, labels, val, val_labels, SINGLE)
    strengths, scores = zip(*probe.path, strict=True)
    assert len(probe.path) == 10 and list(strengths) == sorted(strengths, reverse=True)
    assert probe.val_score == dict(probe.path)[probe.strength] >= max(scores) - 1e-3
    alone = fit_linear_probe(train, labels, val, val_labels, SINGLE, strengths=[probe.strength])
    np.testing.assert_allclose(logits(alone, val), logits(probe, val), atol=1e-3)  # the warm start leaves no trace
    assert alone.val_score == pytest.approx(probe.val_score, abs=1e-3)


def test_equal_aurocs_are_decided_by_the_loss():
    """Separable, 5% positive: every penalty ranks perfectly, the strongest calls everything negative."""
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 20 == 0).astype(int)
    features = (rng.normal(size=(400, 5)) * 0.1 + labels[:, None]).astype(np.float32)
    probe = fit_linear_probe(features, labels, features, labels, SINGLE)
    assert {score for _, score in probe.path} == {1.0}
    assert (logits(probe, features).argmax(axis=1) == labels).all()
    strongest = fit_linear_probe(features, labels, features, labels, SINGLE, strengths=[1e5])
    assert (logits(strongest, features).argmax(axis=1) == 0).all()


def test_loss_decides_where_auroc_is_undefined():
    train, labels = planted(60, 2, 1.0, 0)
    probe = fit_linear_probe(train, labels, train[labels == 0], labels[labels == 0], SINGLE)
    assert probe.val_score == max(score for _, score in probe.path) < 0


def test_cross_validation_without_validation_data():
    train, labels = planted(150, 3, 1.5, 0)
    first, second = (fit_linear_probe(train, labels, None, None, SINGLE, seed=3) for _ in range(2))
    assert first.strength == second.strength and (first.weight == second.weight).all()
    test, test_labels = planted(600, 3, 1.5, 2)
    unseen = roc_auc_score(np.eye(3)[test_labels], softmax(logits(first, test), axis=1))
    # Standard deviation of the difference over draws of the data: 0.03.
    assert first.val_score == pytest.approx(unseen, abs=0.09) and unseen > 0.8
    noise = np.random.default_rng(0).normal(size=(150, 40))
    assert fit_linear_probe(noise, labels, None, None, SINGLE).val_score < 0.62
    few = fit_linear_probe(train[:8], labels[:8], None, None, SINGLE)  # classes of 3, 3 and 2 rows
    assert few.weight.shape == (3, 40)


def test_cross_validation_of_labels_and_numbers():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 8)).astype(np.float32)
    targets = (features[:, :2] > [[0.0, 1.2]]).astype(int)
    assert fit_linear_probe(features, targets, None, None, MULTI).val_score > 0.9
    assert fit_linear_probe(features, features[:, :1] * 3, None, None, "regression").val_score > -0.01


@pytest.mark.parametrize("kind", [SINGLE, MULTI, "regression"])
def test_folds_keep_patients_together(kind):
    """Copies of a patient's image tell nothing of others: noise that each patient's images share is not learnt."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 4)
    targets = {
        SINGLE: rng.integers(3, size=40),
        MULTI: rng.integers(2, size=(40, 2)),
        "regression": rng.normal(size=(40, 1)),
    }
    targets = targets[kind][patients]
    for train, held_out in folds(targets, kind, ["a", "b", "c"][: 3 if kind == SINGLE else 2], 0, patients):
        assert not set(patients[train]) & set(patients[held_out]) and len(train) + len(held_out) == 160
    noise = rng.normal(size=(40, 20))[patients] + 0.1 * rng.normal(size=(160, 20))
    apart, together = (
        fit_linear_probe(noise, targets, None, None, kind, [1.0], patients=names).val_score
        for names in (None, patients)
    )
    assert together < apart - 0.2
    assert together < (0.0 if kind == "regression" else 0.7)


def test_constant_and_repeated_features_do_no_harm():
    train, labels = planted(120, 2, 1.5, 0)
    val, val_labels = planted(120, 2, 1.5, 1)
    plain = fit_linear_probe(train, labels, val, val_labels, SINGLE)
    # A constant that float32 rounding makes tremble in validation, and zeros.
    extra = [np.c_[part, np.full(120, 7.1), np.zeros(120)].astype(np.float32) for part in (train, val)]
    extra[1][::2, -2] = np.nextafter(np.float32(7.1), np.float32(8))
    probe = fit_linear_probe(extra[0], labels, extra[1], val_labels, SINGLE)
    np.testing.assert_allclose(logits(probe, extra[1]), logits(plain, val), atol=1e-3)
    assert np.abs(probe.weight[:, -2:]).max() < 1e-6
    twice = fit_linear_probe(np.c_[train, train], labels, np.c_[val, val], val_labels, SINGLE)
    assert np.isfinite(twice.weight).all() and twice.val_score == pytest.approx(plain.val_score, abs=0.02)


def test_class_weights_move_the_prior():
    rng = np.random.default_rng(0)
    labels = (np.arange(400) % 10 == 0).astype(int)
    features = rng.normal(size=(400, 3)).astype(np.float32)
    options = (features, labels, features, labels, SINGLE, [1e4])
    means = [
        softmax(logits(fit_linear_probe(*options, class_weights=weights), features), axis=1)[:, 1].mean()
        for weights in (None, [1.0, 9.0])
    ]
    assert means == pytest.approx([0.1, 0.5], abs=0.02)


def test_bad_input_is_refused():
    train, labels = planted(20, 2, 1.0, 0)
    broken = train.copy()
    broken[3, 1] = np.inf
    for arguments, options in (
        ((train, labels, train, labels, SINGLE), {"class_names": ["no", "mild", "severe"]}),  # none of severe
        ((train, labels, train[:2], [0, 2], SINGLE), {}),
        ((train, np.c_[np.ones(20), labels], None, None, MULTI), {"class_names": ["dr", "amd"]}),
        ((train[:5], [0, 0, 0, 0, 1], None, None, SINGLE), {}),
        ((train, labels, train[:, :3], labels, SINGLE), {}),
        ((train, labels, train, None, SINGLE), {}),
    ):
        with pytest.raises(BadDataError):
            fit_linear_probe(*arguments, **options)
    with pytest.raises(BadDataError) as error:
        fit_linear_probe(broken, labels, train, labels, SINGLE)
    assert error.value.rows == (3,)
    for kind, field, value in (
        (SINGLE, "strengths", [0.0]), (SINGLE, "class_weights", [1.0, 0.0]), ("regression", "class_weights", [1.0]),
        (SINGLE, "class_names", ["no"]),
    ):  # fmt: skip
        with pytest.raises(BadArgumentError) as error:
            fit_linear_probe(train, labels, train, labels, kind, **{field: value})
        assert error.value.field == field


def test_an_unfinished_fit_is_told(monkeypatch):
    monkeypatch.setattr("retfound_hf.evaluation.linear_probe.MAX_ITERATIONS", 2)
    train, labels = planted(60, 3, 1.0, 0)
    with pytest.warns(UserWarning):
        fit_linear_probe(train, labels, train, labels, SINGLE, strengths=[0.01])
