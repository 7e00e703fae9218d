"""Shares of the training patients: nested, stratified, by patient, seeded."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from retfound_hf.data.labelled import LabelledSet, fraction_of_patients, keep_fraction
from retfound_hf.errors import RetFoundError

FRACTIONS = (0.05, 0.1, 0.2, 0.5, 0.9, 1.0)


@pytest.fixture
def patients() -> tuple[np.ndarray, np.ndarray]:
    """200 patients with one to three images; 60% a, 30% b, 10% c."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], [120, 60, 20])
    counts = rng.integers(1, 4, 200)
    return np.repeat([f"p{number:03d}" for number in range(200)], counts), np.repeat(labels, counts)


@pytest.mark.parametrize("seed", range(5))
def test_smaller_shares_lie_inside_larger_ones(patients, seed):
    groups, labels = patients
    kept = [set(groups[fraction_of_patients(groups, labels, fraction, seed)]) for fraction in FRACTIONS]
    assert [len(found) for found in kept] == [10, 20, 40, 100, 180, 200]
    assert all(small < large for small, large in pairwise(kept))


def test_images_of_a_patient_stay_together_and_classes_keep_their_shares(patients):
    groups, labels = patients
    for fraction in FRACTIONS:
        kept = fraction_of_patients(groups, labels, fraction, seed=3)
        assert not set(groups[kept]) & set(groups[~kept])
        counts = pd.Series(labels[kept], groups[kept]).groupby(level=0).first().value_counts()
        expected = fraction * np.array([120, 60, 20])
        assert np.abs(counts[["a", "b", "c"]].to_numpy() - expected).max() <= 1


def test_seeds_draw_other_patients_whatever_the_order_of_the_rows(patients):
    groups, labels = patients
    shuffled = np.random.default_rng(1).permutation(len(groups))
    first = set(groups[fraction_of_patients(groups, labels, 0.2, seed=0)])
    assert first == set(groups[shuffled][fraction_of_patients(groups[shuffled], labels[shuffled], 0.2, seed=0)])
    assert len(first & set(groups[fraction_of_patients(groups, labels, 0.2, seed=1)])) < 20


def test_every_class_is_there_even_where_its_share_would_be_none():
    labels = np.array(["common"] * 98 + ["rare", "rarer"])
    kept = fraction_of_patients(np.arange(100), labels, 0.03, seed=0)
    assert sorted(labels[kept]) == ["common", "rare", "rarer"]
    with pytest.raises(RetFoundError, match=r"fewer than the 3 classes; give at least 0\.03"):
        fraction_of_patients(np.arange(100), labels, 0.02, seed=0)


def test_a_patient_of_two_classes_stands_for_the_rarer():
    groups = np.repeat(np.arange(40), 2)
    labels = np.where(np.arange(80) % 2 == 0, "healthy", np.where(np.arange(80) < 20, "ill", "healthy"))
    kept = fraction_of_patients(groups, labels, 0.5, seed=0)
    assert len({group for group, label in zip(groups[kept], labels[kept], strict=True) if label == "ill"}) in (5, 6)


def test_multi_label_and_regression_are_stratified_too():
    findings = np.zeros((100, 2), dtype=np.float32)
    findings[:30, 0], findings[20:40, 1] = 1, 1
    kept = fraction_of_patients(np.arange(100), findings, 0.5, seed=0)
    assert np.abs(findings[kept].sum(axis=0) - [15, 10]).max() <= 2
    values = np.linspace(0, 1, 100, dtype=np.float32)
    assert values[fraction_of_patients(np.arange(100), values, 0.2, seed=0)].mean() == pytest.approx(0.5, abs=0.06)


def test_only_training_rows_are_left_out():
    table = pd.DataFrame(
        {
            "id": [f"i{number:02d}" for number in range(40)],
            "split": ["train"] * 20 + ["val"] * 10 + ["test"] * 10,
            "patient_id": None,
            "label": ["a", "b"] * 20,
        }
    )
    labelled = LabelledSet(table, "single_label_classification", ("a", "b"), ("label",))
    kept = keep_fraction(labelled, 0.5, seed=0)
    assert kept.table["split"].value_counts().to_dict() == {"train": 10, "val": 10, "test": 10}
    assert keep_fraction(labelled, 1.0) is labelled
