"""Splits and shares: by patient, stratified, seeded; shares are nested."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from retfound_hf.data.splits import PAPER_FRACTIONS, SPLITS, assign_splits, fraction_of_patients
from retfound_hf.data.tables import check_no_patient_leak
from retfound_hf.errors import BadArgumentError, BadDataError

FRACTIONS = (0.05, 0.1, 0.2, 0.5, 0.9, 1.0)


def cohort(seed: int):
    """Patients with one to four images of mostly one class; class sizes differ widely."""
    rng = np.random.default_rng(seed)
    patients, classes = int(rng.integers(15, 90)), int(rng.integers(2, 6))
    usual = rng.choice(classes, patients, p=rng.dirichlet(np.ones(classes)))
    groups = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    labels = np.where(rng.random(len(groups)) < 0.8, usual[groups], rng.integers(classes, size=len(groups)))
    return np.array([f"p{group}" for group in groups]), labels


def patients_per_split(groups, splits):
    return np.array([len(np.unique(groups[splits == split])) for split in SPLITS])


@pytest.mark.parametrize("seed", range(20))
def test_patients_are_whole_shares_hold_and_every_class_is_in_every_split(seed):
    groups, labels = cohort(seed)
    splits = assign_splits(groups, labels, seed=seed)
    patients = np.unique(groups)
    assert all(len(set(splits[groups == patient])) == 1 for patient in patients)
    assert np.abs(patients_per_split(groups, splits) - len(patients) * np.array(PAPER_FRACTIONS)).max() <= 2
    for label in np.unique(labels):
        of_class = labels == label
        size = len(np.unique(groups[of_class]))
        found = patients_per_split(groups[of_class], splits[of_class])
        assert size < 3 or found.min() >= 1
        assert np.abs(found - size * np.array(PAPER_FRACTIONS)).max() <= 3


@pytest.mark.parametrize("seed", range(10))
def test_multi_label_findings_are_in_every_split(seed):
    rng = np.random.default_rng(seed)
    labels = (rng.random((60, 6)) < rng.uniform(0.06, 0.4, 6)).astype(np.float32)
    splits = assign_splits(np.arange(60), labels, seed=seed)
    for column in range(6):
        positives = labels[:, column] == 1
        found = patients_per_split(np.arange(60)[positives], splits[positives])
        assert positives.sum() < 3 or found.min() >= 1
    healthy = ~labels.any(axis=1)
    found = patients_per_split(np.arange(60)[healthy], splits[healthy])
    assert np.abs(found - healthy.sum() * np.array(PAPER_FRACTIONS)).max() < 3


@pytest.mark.parametrize("shape", [(), (2,)])
def test_regression_targets_are_spread_alike(shape):
    rng = np.random.default_rng(0)
    values = rng.gamma(2, 10, (300, 1)).repeat(2, axis=1) if shape else rng.gamma(2, 10, 300)
    splits = assign_splits(np.arange(300), values.astype(np.float32))
    means = [values[splits == split].mean() for split in SPLITS]
    assert np.ptp(means) < 0.15 * values.mean()
    assert patients_per_split(np.arange(300), splits) == pytest.approx([165, 45, 90], abs=2)


def test_order_of_rows_does_not_matter_and_the_seed_does():
    groups, labels = cohort(3)
    shuffled = np.random.default_rng(1).permutation(len(groups))
    splits = assign_splits(groups, labels, seed=5)
    np.testing.assert_array_equal(assign_splits(groups[shuffled], labels[shuffled], seed=5), splits[shuffled])
    assert (assign_splits(groups, labels, seed=6) != splits).any()


def test_a_share_of_nothing_leaves_a_split_empty():
    splits = assign_splits(np.arange(10), np.arange(10) % 2, fractions=(0.8, 0.2, 0))
    assert [(splits == split).sum() for split in SPLITS] == [8, 2, 0]


@pytest.mark.parametrize(
    "fractions", [(0.5, 0.5), (0.5, 0.2, 0.2), (0, 0.5, 0.5), (1.2, -0.1, -0.1), (float("nan"),) * 3]
)
def test_impossible_fractions(fractions):
    with pytest.raises(BadArgumentError) as error:
        assign_splits(np.arange(9), np.arange(9) % 2, fractions=fractions)
    assert error.value.field == "split_fractions" and error.value.value is fractions


def test_too_few_patients_and_unequal_lengths():
    with pytest.raises(BadDataError):
        assign_splits(np.array(["a", "b", "b"]), np.array([0, 1, 1]))
    with pytest.raises(BadDataError):
        assign_splits(np.arange(3), np.arange(2))


def test_a_leak_names_five_patients_and_counts_them_all():
    leaked = [(f"p{number}", split) for number in range(7) for split in ("test", "train")]
    table = pd.DataFrame([*leaked, ("clean", "train"), ("clean", "train"), (None, "train"), (None, "test")])
    table.columns = ["patient_id", "split"]
    with pytest.raises(BadDataError) as error:
        check_no_patient_leak(table)
    assert error.value.rows == tuple(f"p{number}" for number in range(7))
    assert "p4 in train and test; ..." in str(error.value)
    check_no_patient_leak(table[table["split"] == "train"])


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
    with pytest.raises(BadArgumentError) as error:
        fraction_of_patients(np.arange(100), labels, 0.02, seed=0)
    assert error.value.value == 0.02 and "0.03" in str(error.value)


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
