"""Labelled sets: a folder, a table or a Hub data set as one table of images, patients, splits and labels."""

import dataclasses
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..errors import RetFoundError, join_names
from ..evaluation.validation import ProblemType
from ..images.reading import find_images
from . import checks
from .checks import check_columns
from .hf_datasets import read_stored
from .splits import (
    PAPER_FRACTIONS,
    SPLITS,
    assign_splits,
    check_no_patient_leak,
    classes_of_patients,
    normalise_split,
)
from .tables import TABLE_SUFFIXES, as_text, clean_labels, holds_images, infer_problem_type, read_table, table_images


@dataclass(frozen=True)
class LabelledSet:
    """Images with what is known of each.

    Attributes:
        table: one row per image, sorted by `id`: `id` (path relative to the data, unique), `image` (absolute path,
            or the bytes of a file), `split` ("train", "val", "test"; "all" if the data are not divided),
            `patient_id` (None where unknown), the label columns, and whatever else the data hold.
        problem_type: as in transformers' configurations.
        class_names: classes in the order of the targets; for multi-label and regression the label columns.
        label_columns: columns of `table` that hold the labels.
    """

    table: pd.DataFrame
    problem_type: ProblemType
    class_names: tuple[str, ...]
    label_columns: tuple[str, ...]

    @property
    def patients_known(self) -> bool:
        """Whether every image has a patient."""
        return bool(self.table["patient_id"].notna().all())

    def rows(self, split: str) -> pd.DataFrame:
        """The rows of a split, or of "all", in the order of the table.

        Raises:
            RetFoundError: the set has no such split.
        """
        if split == "all":
            return self.table
        rows = self.table[self.table["split"] == (normalise_split(split) or split)]
        if rows.empty:
            present = ", ".join(self.table["split"].unique())
            raise RetFoundError(f"split {split!r} has no images; choose one of {present}, or 'all' for every image")
        return rows

    def targets(self, split: str) -> np.ndarray:
        """What a model is to predict for the rows of `split`.

        Returns:
            Single-label: int64 (images,), indices into `class_names`. Multi-label: float32 (images, classes) of 0 and
            1. Regression: float32 (images,), or (images, targets) for several columns.
        """
        labels = self.rows(split)[list(self.label_columns)]
        if self.problem_type == "single_label_classification":
            index = {name: position for position, name in enumerate(self.class_names)}
            return labels[self.label_columns[0]].map(index).to_numpy(dtype=np.int64)
        values = labels.to_numpy(dtype=np.float32)
        single_target = self.problem_type == "regression" and values.shape[1] == 1
        return values[:, 0] if single_target else values

    def counts(self) -> pd.DataFrame:
        """Images by class (multi-label: positives; regression: values) and split, integers."""
        splits = [split for split in (*SPLITS, "all") if split in SPLITS or (self.table["split"] == split).any()]
        by_split = self.table.groupby("split")
        if self.problem_type == "single_label_classification":
            counts = pd.crosstab(self.table[self.label_columns[0]], self.table["split"])
        elif self.problem_type == "multi_label_classification":
            counts = by_split[list(self.label_columns)].sum().T
        else:
            counts = by_split[list(self.label_columns)].count().T
        counts = counts.reindex(index=list(self.class_names), columns=splits, fill_value=0).astype(int)
        return counts.rename_axis(index="class", columns="split")


logger = logging.getLogger(__name__)
METADATA = "metadata.csv"


def class_folders(root: Path) -> dict[str | None, list[Path]]:
    """Class folders by split (None: no split folders); empty where `root` has no image in any class folder."""
    splits = [folder for folder in _folders(root) if normalise_split(folder.name)]
    found = {normalise_split(folder.name): _folders(folder) for folder in splits} or {None: _folders(root)}
    if len(splits) > len(found):
        raise RetFoundError(f"{root} has two folders for one split ({join_names(f.name for f in splits)}); keep one")
    return found if any(find_images(folder) for folders in found.values() for folder in folders) else {}


def read_folder(root: Path, folders: dict[str | None, list[Path]], allow_empty: bool = False) -> pd.DataFrame:
    """List the images of `class_folders(root)`.

    Args:
        allow_empty: pass over empty class folders (an evaluation need not hold every class).

    Returns:
        One row per image: `id`, `image`, `label`, `split` where there are split folders, and the columns of
        `metadata.csv` beside the folders (its `image` column holds paths relative to it) where there is one.

    Raises:
        RetFoundError: an empty class folder, or metadata that fit none of the images.
    """
    rows = []
    for split, parents in folders.items():
        for parent in parents:
            images = find_images(parent)
            if not images and not allow_empty:
                raise RetFoundError(f"class folder {parent} holds no image; add some, or remove the folder")
            rows += [(path.relative_to(root).as_posix(), str(path.absolute()), parent.name, split) for path in images]
    table = pd.DataFrame(rows, columns=["id", "image", "label", "split"])
    if None in folders:
        table = table.drop(columns="split")
    return _with_metadata(table, root / METADATA) if (root / METADATA).is_file() else table


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _with_metadata(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    metadata = read_table(path).rename(columns={"file_name": "image"})
    check_columns(metadata, ["image"], path, "its header: paths relative to the folder")
    metadata["image"] = metadata["image"].str.replace("\\", "/").str.removeprefix("./")
    if metadata["image"].duplicated().any():
        repeated = metadata.loc[metadata["image"].duplicated(), "image"].unique()
        raise RetFoundError(f"{path} lists {len(repeated)} image(s) more than once ({join_names(repeated)})")
    undescribed = table.loc[~table["id"].isin(metadata["image"]), "id"]
    if len(undescribed) == len(table):
        raise RetFoundError(
            f"{path} describes none of the images: it names {metadata['image'].iloc[0]!r} where the folder has "
            f"{table['id'].iloc[0]!r}; give paths relative to {path.parent}"
        )
    if len(undescribed):
        logger.warning("%s does not describe %d of the images (%s)", path, len(undescribed), join_names(undescribed))
    # The folders are what the user sees and moves files between: they decide over the metadata's columns.
    extra = metadata.drop(columns=[name for name in ("id", "label", "split") if name in metadata.columns])
    return table.merge(extra.rename(columns={"image": "id"}), on="id", how="left", validate="one_to_one")


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


def read_labelled(
    data: str,
    *,
    label_columns: Sequence[str] | None = None,
    problem_type: str | None = None,
    class_names: Sequence[str] | None = None,
    image_column: str = "image",
    image_root: str | None = None,
    split_fractions: Sequence[float] = PAPER_FRACTIONS,
    seed: int = 0,
    need_splits: Sequence[str] = SPLITS,
) -> LabelledSet:
    """Read and check a labelled set.

    Args:
        data: a folder laid out as {train,val,test}/<class>/* or <class>/* (patients from a `metadata.csv` beside the
            folders), a CSV or parquet table (of paths, or a parquet file that holds the images), or a Hub id or folder
            that `datasets.load_dataset` reads.
        label_columns: "label" by default (for a multi-label or regression model its `class_names`).
        problem_type: by default single-label for one label column, multi-label for several of 0 and 1.
        class_names: the classes, in order, of a model that is to be evaluated; images of some may then be absent.
        image_column: of a table or a Hub data set.
        image_root: folder at which a table's relative paths start; by default the table's own.
        split_fractions: shares of patients for data without splits; `seed` deals them.
        need_splits: splits that must exist and are checked; () reads any set for use as a whole ("all").

    Raises:
        RetFoundError: anything that would make results wrong or impossible, in one line.
    """
    if label_columns is None:
        several = class_names is not None and problem_type not in (None, "single_label_classification")
        label_columns = tuple(class_names) if several else ("label",)
    table = _read_source(data, label_columns, image_column, image_root, allow_empty=class_names is not None)
    checks.check_columns(table, label_columns, data, "--label_columns")
    if table.empty:
        raise RetFoundError(f"{data} holds no image; give {checks.ACCEPTED_DATA}")
    kind = infer_problem_type(table, label_columns, problem_type, data)
    if class_names is not None and kind != "single_label_classification":
        label_columns = _in_models_order(label_columns, class_names, kind, data)
    patients = as_text(table["patient_id"]) if "patient_id" in table else pd.Series(None, table.index, dtype=object)
    if need_splits:
        checks.check_patients(table, patients, label_columns, data)
    table = table.assign(patient_id=patients.where(patients != "", None))
    if "split" in table:
        table["split"] = _normalised_splits(table, data)
    checks.check_unique_images(table, data)
    table = table.sort_values("id", ignore_index=True)
    table, names = clean_labels(table, label_columns, kind, class_names, data)
    if kind == "single_label_classification" and len(names) < 2:
        raise RetFoundError(f"{data} has a single class, {names[0]!r}; classification needs at least two")

    has_splits = "split" in table
    if not has_splits:
        table["split"] = "all"
    found = LabelledSet(table, kind, names, tuple(label_columns))
    if not has_splits and need_splits:
        groups = table["patient_id"].where(table["patient_id"].notna(), "image:" + table["id"])
        # Class names and not their indices: a model's own order of classes must not change the split.
        labels = table[label_columns[0]].to_numpy(str) if kind.startswith("single") else found.targets("all")
        table["split"] = assign_splits(groups.to_numpy(str), labels, split_fractions, seed)
    checked = table[table["split"].isin(need_splits)] if need_splits else table
    checks.check_images_exist(checked, data)
    if need_splits:
        checks.check_needed_splits(table, need_splits, data)
        check_no_patient_leak(table)
        checks.check_class_coverage(found.counts(), need_splits, data)
        checks.warn_identical_content(checked, data)
    return found


def _read_source(
    data: str, label_columns: Sequence[str], image_column: str, image_root: str | None, allow_empty: bool
) -> pd.DataFrame:
    path = Path(data)
    if path.is_dir():
        folders = class_folders(path)
        if folders:
            return read_folder(path, folders, allow_empty)
        if not any(path.rglob("*.*")):
            raise RetFoundError(f"{data} holds no image; give {checks.ACCEPTED_DATA}")
        return read_stored(data, image_column)
    if path.is_file():
        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise RetFoundError(f"{data} is not a table ({', '.join(TABLE_SUFFIXES)}); give {checks.ACCEPTED_DATA}")
        if holds_images(path, image_column):
            return read_stored(data, image_column)
        return table_images(read_table(path, label_columns), path, image_column, image_root)
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", data) and path.suffix.lower() not in TABLE_SUFFIXES:
        return read_stored(data, image_column)
    raise RetFoundError(f"data {data} does not exist; give {checks.ACCEPTED_DATA}")


def _in_models_order(
    columns: Sequence[str], class_names: Sequence[str], problem_type: ProblemType, data: str
) -> tuple[str, ...]:
    if problem_type == "multi_label_classification" and set(columns) == set(class_names):
        return tuple(class_names)
    if problem_type == "regression" and len(columns) == len(class_names):
        return tuple(columns)
    raise RetFoundError(
        f"{data}: label columns {checks.listed(columns, 20)} do not fit the model, which predicts "
        f"{checks.listed(class_names, 20)}; give those columns with --label_columns"
    )


def _normalised_splits(table: pd.DataFrame, data: str) -> pd.Series:
    splits = table["split"].map(normalise_split)
    if splits.isna().any():
        wrong = table.loc[splits.isna(), "split"].astype(object).fillna("no value").unique()
        raise RetFoundError(
            f"{data}: column split holds {checks.listed(wrong)}; accepted are train, val (validation, valid, dev) "
            "and test, or no split column at all"
        )
    return splits
