import numpy as np
import pandas as pd
import pytest

from retfound_hf.data.splits import PAPER_FRACTIONS, SPLITS, assign_splits, check_no_patient_leak
from retfound_hf.errors import RetFoundError


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
    assert (
        np.abs(
            patients_per_split(np.arange(60)[healthy], splits[healthy]) - healthy.sum() * np.array(PAPER_FRACTIONS)
        ).max()
        < 3
    )


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
    with pytest.raises(RetFoundError, match="are not shares of train, val and test; give three numbers that sum"):
        assign_splits(np.arange(9), np.arange(9) % 2, fractions=fractions)


def test_too_few_patients_and_unequal_lengths():
    with pytest.raises(RetFoundError, match=r"2 patient\(s\) cannot be divided into 3 splits"):
        assign_splits(np.array(["a", "b", "b"]), np.array([0, 1, 1]))
    with pytest.raises(RetFoundError, match="3 patients were given for 2 labels"):
        assign_splits(np.arange(3), np.arange(2))


def test_a_leak_names_five_patients_and_counts_them_all():
    leaked = [(f"p{number}", split) for number in range(7) for split in ("test", "train")]
    table = pd.DataFrame([*leaked, ("clean", "train"), ("clean", "train"), (None, "train"), (None, "test")])
    table.columns = ["patient_id", "split"]
    with pytest.raises(
        RetFoundError, match=r"^7 patient\(s\) .*\(p0 in train and test; p1 .*p4 in train and test; \.\.\.\)"
    ):
        check_no_patient_leak(table)
    check_no_patient_leak(table[table["split"] == "train"])
