"""Names of splits; splits and shares by patient: stratified, seeded, never dividing a patient."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from ..errors import BadArgumentError, BadDataError

SPLITS = ("train", "val", "test")
PAPER_FRACTIONS = (0.55, 0.15, 0.30)
REGRESSION_BINS = 5

# Words of a split's name, as `datasets` knows them and more; digits, case and the words of FILLERS do not count.
SPLIT_WORDS = {
    "train": "train", "training": "train", "trn": "train", "tr": "train", "learning": "train", "derivation": "train",
    "val": "val", "validation": "val", "validate": "val", "valid": "val", "dev": "val", "tune": "val", "tuning": "val",
    "test": "test", "testing": "test", "tst": "test", "te": "test", "holdout": "test", "heldout": "test",
    "eval": "test", "evaluation": "test", "evaluate": "test",
}  # fmt: skip
# The validation set beside a test set (RFMiD: Training_Set, Evaluation_Set, Test_Set), else the test set (`datasets`).
EVALUATION = ("eval", "evaluation", "evaluate")
FILLERS = (
    "set", "sets", "data", "dataset", "split", "subset", "part", "images", "image", "imgs", "img", "files", "csv",
    "txt", "internal", "external", "public", "private", "official", "blind", "hidden", "final",
)  # fmt: skip
# Parts beside a split: development (of which `dev` is val) may be any.
PARTS = {"development", "internal", "external", "discovery", "replication", "public", "private"}
FOLDS = re.compile(r"(cv|kfold|folds?|splits?|partitions?|parts?)[\W_]*\d+", re.I)


def words_of(name: object) -> list[str]:
    """Words of letters, in lower case: `TrainingSet400` gives training, set."""
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", str(name)).replace("old-out", "oldout").lower())


def _split_words(name: object) -> tuple[list[str], list[str]]:
    """Words of `name` that name a split, and the others but for fillers and single letters."""
    words = [re.sub(r"(?<=[a-z]{2})(data)?(sets?|data|images|split)$", "", word) or word for word in words_of(name)]
    found = [word for word in words if word in SPLIT_WORDS]
    return found, [word for word in words if word not in SPLIT_WORDS and word not in FILLERS and len(word) > 1]


def normalise_split(name: object) -> str | None:
    """One of "train", "val", "test" for any accepted spelling, such as `Training_Set` or `Test400`, else None."""
    found, others = _split_words(name)
    return SPLIT_WORDS[found[0]] if len(found) == 1 and not others else None


def splits_of(names: Iterable[object]) -> dict[object, str]:
    """The names among `names` that are splits, each with its split.

    Names with other words in them (`REFUGE-Training400`) count where all of `names` have one split's name, of two
    splits or more.
    """
    names = list(names)
    found = {name: split for name in names if (split := normalise_split(name))}
    if not found:
        loose = {name: SPLIT_WORDS[words[0]] for name in names if len(words := _split_words(name)[0]) == 1}
        found = loose if len(loose) == len(names) and len(set(loose.values())) > 1 else {}
    asked = [name for name in found if _split_words(name)[0][0] in EVALUATION]
    if "val" not in found.values() and any(found[name] == "test" for name in found if name not in asked):
        found.update(dict.fromkeys(asked, "val"))
    return found


def name_splits(names: Iterable[str]) -> bool:
    """Whether all of several names are those of splits or folds, and so of no classes."""
    splits = {name: normalise_split(name) or FOLDS.fullmatch(name.strip()) for name in names}
    parts = [name for name, split in splits.items() if not split]
    return len(splits) > max(1, len(parts)) and all(PARTS & set(words_of(name)) for name in parts)


def patient_groups(rows: pd.DataFrame) -> np.ndarray:
    """Patient of each row; a row without one is a patient of its own."""
    return rows["patient_id"].where(rows["patient_id"].notna(), "image:" + rows["id"]).to_numpy(str)


def assign_splits(
    groups: np.ndarray, labels: np.ndarray, fractions: Sequence[float] = PAPER_FRACTIONS, seed: int = 0
) -> np.ndarray:
    """Assign every image to "train", "val" or "test" so that all images of a patient fall into one of them.

    Iterative stratification (Sechidis et al. 2011, "On the stratification of multi-label data") over patients: the
    rarest class is dealt first, each of its patients to the split that lacks most of that class; single patients are
    then moved where that brings the shares nearer. Shares are shares of patients, as in the paper's 55:15:30 by
    patient. A class with at least three patients appears in every split wherever patients of several classes allow.
    The result depends on the set of patients and the seed, not on the order of the rows.

    Args:
        groups: (images,) patient of each image, strings or integers.
        labels: (images,) classes, (images, classes) multi-hot of 0 and 1, or floats (images,) or (images, targets)
            for regression, which are stratified by quantiles of the patient's mean.
        fractions: shares of train, val and test, summing to 1; a share of 0 leaves that split empty.
        seed: another seed deals other patients.

    Returns:
        (images,) of "train", "val", "test".

    Raises:
        BadArgumentError: impossible fractions.
        BadDataError: arrays of different lengths, or fewer patients than splits.
    """
    shares = _checked_fractions(fractions)
    groups, labels = np.asarray(groups), np.asarray(labels)
    if len(groups) != len(labels):
        raise BadDataError(f"{len(groups)} patients were given for {len(labels)} labels; give one of each per image")
    patients, patient_of_image = np.unique(groups, return_inverse=True)
    if len(patients) < (shares > 0).sum():
        raise BadDataError(
            f"{len(patients)} patient(s) cannot be divided into {(shares > 0).sum()} splits; "
            "add patients, or give a split column"
        )
    presence = classes_of_patients(patient_of_image, len(patients), labels)
    return np.array(SPLITS)[_deal(presence, shares, np.random.default_rng(seed))[patient_of_image]]


def _checked_fractions(fractions: Sequence[float]) -> np.ndarray:
    shares = np.asarray(fractions, dtype=float)
    if shares.shape != (3,) or not (shares >= 0).all() or shares[0] == 0 or abs(shares.sum() - 1) > 1e-6:
        raise BadArgumentError(
            f"`split_fractions={tuple(fractions)}` are not shares of train, val and test; give three numbers that sum "
            "to 1, the first above 0, such as 0.55 0.15 0.30",
            field="split_fractions", value=fractions,
        )  # fmt: skip
    return shares


def classes_of_patients(patient_of_image: np.ndarray, patients: int, labels: np.ndarray) -> np.ndarray:
    """Bool (patients, classes): which classes a patient has an image of."""
    is_float = labels.dtype.kind == "f"
    if labels.ndim == 2 and np.isin(labels, (0, 1)).all():
        # A patient without any finding counts as a class, or all of them might fall into one split.
        columns = np.hstack([labels > 0, ~(labels > 0).any(axis=1, keepdims=True)])
        image, column = np.nonzero(columns)
        presence = np.zeros((patients, columns.shape[1]), dtype=bool)
        presence[patient_of_image[image], column] = True
        return presence
    if is_float or labels.ndim == 2:
        values = labels.reshape(len(labels), -1).astype(float)
        score = ((values - values.mean(axis=0)) / (values.std(axis=0) + 1e-12)).mean(axis=1)
        means = np.bincount(patient_of_image, score, patients) / np.bincount(patient_of_image, minlength=patients)
        bins = min(REGRESSION_BINS, max(1, patients // 6))
        code = np.searchsorted(np.quantile(means, np.arange(1, bins) / bins), means, side="right")
        return np.eye(bins, dtype=bool)[code]
    classes, code = np.unique(labels, return_inverse=True)
    presence = np.zeros((patients, len(classes)), dtype=bool)
    presence[patient_of_image, code] = True
    return presence


def _deal(presence: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Split index (patients,) by iterative stratification over `presence` (patients, classes), then by `_settle`."""
    order = rng.permutation(len(presence))
    sizes = presence.sum(axis=0)
    wanted, wanted_overall = np.outer(sizes, shares), len(presence) * shares
    used = np.flatnonzero(shares > 0)
    split = np.full(len(presence), -1)
    for column in np.argsort(sizes, kind="stable"):
        for patient in order[presence[order, column] & (split[order] < 0)]:
            best = max(used, key=lambda s: (round(wanted[column, s], 9), wanted_overall[s]))
            split[patient] = best
            wanted[presence[patient], best] -= 1
            wanted_overall[best] -= 1
    return _settle(split, presence, shares)


def _settle(split: np.ndarray, presence: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Move single patients, always the one that helps most, until no move brings the splits nearer to their shares.

    The cost is the squared error of the splits' numbers of patients, plus that of each class divided by the class's
    size, plus a prohibitive one for a split that lacks a class which has patients enough for all. Every term is a
    sum over classes, so that the gain of all moves is two matrix products.
    """
    patients, sizes = np.arange(len(split)), np.maximum(presence.sum(axis=0), 1)[:, None]
    used = shares > 0
    guaranteed = (sizes >= used.sum()) & used
    for _ in range(len(split)):
        members = np.eye(3)[split]
        counts = presence.T.astype(float) @ members
        excess = counts - sizes * shares
        excess_overall = members.sum(axis=0) - len(split) * shares
        joining = (2 * excess + 1) / sizes - 1e6 * (guaranteed & (counts == 0))
        leaving = (1 - 2 * excess) / sizes + 1e6 * (guaranteed & (counts == 1))
        cost = presence @ joining + 2 * excess_overall + 1
        cost += (presence @ leaving - 2 * excess_overall + 1)[patients, split][:, None]
        cost[patients, split] = 0
        cost[:, ~used] = np.inf
        mover, target = np.unravel_index(np.argmin(cost), cost.shape)
        if cost[mover, target] > -1e-9:
            break
        split[mover] = target
    return split


def fraction_of_patients(groups: np.ndarray, labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Mask of the images that belong to a share of the patients.

    Patients stand in a fixed order, of which the first are taken: one of every class, then those that keep the
    classes in proportion. The order depends on the set of patients and the seed, not on the order of the rows.

    Args:
        groups: (images,) patient of each image.
        labels: as in `assign_splits`.
        fraction: of the patients, above 0 and up to 1.
        seed: of the order.

    Returns:
        bool (images,).
    """
    patients, patient_of_image = np.unique(np.asarray(groups), return_inverse=True)
    presence = classes_of_patients(patient_of_image, len(patients), np.asarray(labels))
    number = round(fraction * len(patients))
    classes = int(presence.any(axis=0).sum())
    if number < classes:
        raise BadArgumentError(
            f"a fraction of {fraction:g} of {len(patients)} training patients is {number}, fewer than the {classes} "
            f"classes; give at least {np.ceil(100 * classes / len(patients)) / 100:g}",
            field="train_fraction", value=fraction,
        )  # fmt: skip
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
