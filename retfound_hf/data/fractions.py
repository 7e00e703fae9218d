"""A share of the training patients: stratified, seeded, and nested, so that curves of label efficiency compare."""

import dataclasses

import numpy as np

from ..runs.errors import RetFoundError
from .labelled_set import LabelledSet
from .splits import classes_of_patients


def keep_fraction(labelled: LabelledSet, fraction: float, seed: int = 0) -> LabelledSet:
    """The set with a share of its training patients (of its images where no patient is known), the rest left out.

    Args:
        fraction: of the training patients, above 0 and up to 1.
        seed: draws the patients; with one seed a smaller share lies inside a larger one.

    Raises:
        RetFoundError: the share has fewer patients than there are classes.
    """
    if fraction == 1:
        return labelled
    rows = labelled.rows("train")
    groups = rows["patient_id"].where(rows["patient_id"].notna(), "image:" + rows["id"]).to_numpy(str)
    kept = fraction_of_patients(groups, labelled.targets("train"), fraction, seed)
    dropped = rows["id"][~kept]
    return dataclasses.replace(labelled, table=labelled.table[~labelled.table["id"].isin(dropped)])


def fraction_of_patients(groups: np.ndarray, labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Which images belong to a share of the patients.

    Patients stand in a fixed order, of which the first are taken: one of every class, then those that keep the
    classes in proportion. The order depends on the set of patients and the seed, not on the order of the rows.

    Args:
        groups: (images,) patient of each image.
        labels: as in `splits.assign_splits`.

    Returns:
        bool (images,).
    """
    patients, patient_of_image = np.unique(np.asarray(groups), return_inverse=True)
    presence = classes_of_patients(patient_of_image, len(patients), np.asarray(labels))
    number = round(fraction * len(patients))
    classes = int(presence.any(axis=0).sum())
    if number < classes:
        raise RetFoundError(
            f"a fraction of {fraction:g} of {len(patients)} training patients is {number}, fewer than the {classes} "
            f"classes; give at least {np.ceil(100 * classes / len(patients)) / 100:g}"
        )
    return np.isin(patient_of_image, _order(presence, seed)[:number])


def _order(presence: np.ndarray, seed: int) -> np.ndarray:
    """Patients (indices) in the order in which they join, for `presence` (patients, classes)."""
    shuffled = np.random.default_rng(seed).permutation(len(presence))
    sizes = np.where(presence.any(axis=0), presence.sum(axis=0), len(presence) + 1)
    first: list[int] = []
    for column in np.argsort(sizes, kind="stable"):
        if presence[:, column].any() and not presence[first, column].any():
            first.append(next(patient for patient in shuffled if presence[patient, column]))
    # A patient of several classes stands for the rarest of them.
    stratum = np.where(presence, sizes, len(presence) + 2).argmin(axis=1)
    place = np.empty(len(presence))
    for column in np.unique(stratum):
        members = [patient for patient in shuffled if stratum[patient] == column and patient not in first]
        place[members] = (np.arange(len(members)) + 0.5) / max(len(members), 1)
    rest = [patient for patient in shuffled if patient not in first]
    return np.array(first + sorted(rest, key=lambda patient: place[patient]), dtype=np.int64)
