"""What the training targets decide: weights of the loss, scale and start of a regression, balanced draws."""

import numpy as np
import pytest

from retfound_hf.errors import BadArgumentError
from retfound_hf.finetuning.classifier import label_options
from retfound_hf.finetuning.trainer import BalancedSampler as balanced_sampler

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def test_labels_of_the_configuration():
    options = label_options(np.array([0, 1, 1]), ("mild", "severe"), SINGLE, "none", 0.1)
    assert options == {
        "num_labels": 2,
        "id2label": {0: "mild", 1: "severe"},
        "label2id": {"mild": 0, "severe": 1},
        "problem_type": SINGLE,
        "label_smoothing": 0.1,
        "class_weights": None,
        "target_scale": None,
        "calibration_temperature": 1.0,
    }


def test_balanced_weights_by_hand():
    single = label_options(np.array([0] * 6 + [1] * 3 + [2]), ("a", "b", "c"), SINGLE, "balanced", 0.0)
    assert single["class_weights"] == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [0, 0]], np.float32)
    multi = label_options(targets, ("a", "b"), MULTI, "balanced", 0.0)
    assert multi["class_weights"] == pytest.approx([2 / 3, 4])


def test_balanced_weights_equal_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    targets = np.random.default_rng(0).choice(4, 200, p=[0.6, 0.2, 0.15, 0.05])
    found = label_options(targets, tuple("abcd"), SINGLE, "balanced", 0.0)["class_weights"]
    assert found == pytest.approx(compute_class_weight("balanced", classes=np.arange(4), y=targets))


def test_balanced_weights_stay_finite_without_a_class():
    single = label_options(np.array([0, 0, 1]), ("a", "b", "c"), SINGLE, "balanced", 0.0)
    multi = label_options(np.zeros((4, 1), np.float32), ("a",), MULTI, "balanced", 0.0)
    assert np.isfinite(single["class_weights"]).all()
    assert np.isfinite(multi["class_weights"]).all()


def test_regression_is_measured_in_deviations_and_not_smoothed():
    targets = np.array([10, 20, 30, 40], np.float32)
    options = label_options(targets, ("age",), REGRESSION, "none", 0.1)
    assert options["target_scale"] == pytest.approx([np.std([10, 20, 30, 40])])
    assert options["label_smoothing"] == 0
    constant = label_options(np.full((3, 2), 5, np.float32), ("a", "b"), REGRESSION, "none", 0.1)
    assert constant["target_scale"] == [1.0, 1.0]
    with pytest.raises(BadArgumentError) as error:
        label_options(targets, ("age",), REGRESSION, "balanced", 0.1)
    assert error.value.field == "class_weights"


def test_a_regression_starts_at_the_mean(job, table_set):
    made = job(data=str(table_set), label_columns=["level"], problem_type="regression")
    targets = made.prepared.labelled.targets("train")
    assert made.classifier.model.classifier.bias.item() == pytest.approx(targets.mean(), rel=1e-6)
    assert made.classifier.model.config.target_scale == pytest.approx([targets.std()], rel=1e-6)


def test_balanced_draws_come_evenly():
    targets = np.array([0] * 900 + [1] * 90 + [2] * 10)
    drawn = targets[list(balanced_sampler(targets, SINGLE, seed=0))]
    assert len(drawn) == 1000
    assert np.bincount(drawn) / 1000 == pytest.approx([1 / 3] * 3, abs=0.05)


def test_balanced_draws_follow_seed_and_epoch():
    targets = np.array([0] * 30 + [1] * 10)

    def draws(seed: int, epoch: int) -> list[int]:
        sampler = balanced_sampler(targets, SINGLE, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert draws(0, 0) == draws(0, 0)
    assert len({tuple(draws(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize("problem_type", [MULTI, REGRESSION])
def test_balanced_draws_need_one_class_per_image(problem_type):
    with pytest.raises(BadArgumentError):
        balanced_sampler(np.zeros((4, 2)), problem_type, seed=0)
