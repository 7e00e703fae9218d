"""Labelled sets: a folder, a table or a data set as one table of images, patients, splits and labels."""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..errors import BadArgumentError, BadDataError, join_names
from ..evaluation.predictions import Predictions
from ..images.reading import find_images, walk_images
from ..vocabulary import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from . import tables
from .image_cache import check_identical_content
from .image_sources import as_utf8, stored_ids
from .labels import OWN_ID, clean_labels, find_patients, infer_problem_type, unfold_lists
from .parquet import content_of, holds_images, roots_of
from .splits import PAPER_FRACTIONS, SPLITS, assign_splits, fraction_of_patients, patient_groups
from .stored_images import find_image_column, is_hub_id, load_splits
from .tables import (
    ACCEPTED_SPLITS,
    METADATA,
    check_no_patient_leak,
    name_splits,
    normalise_split,
    read_metadata,
    splits_of,
    warn_of_passed_over,
)

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)
ACCEPTED_DATA = (
    "a folder laid out as {train,val,test}/<class>/*, a CSV or parquet table with the columns image and label, "
    "or the id of a data set on the Hugging Face Hub"
)


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
        class_order: exclusive classes from the lowest to the highest, of two the finding last; None if not known.
    """

    table: pd.DataFrame
    problem_type: str
    class_names: tuple[str, ...]
    label_columns: tuple[str, ...]
    class_order: tuple[str, ...] | None = None

    @property
    def patients_known(self) -> bool:
        """Whether every image has a patient."""
        return bool(self.table["patient_id"].notna().all())

    def rows(self, split: str) -> pd.DataFrame:
        """The rows of a split, or of "all", in the order of the table.

        Raises:
            BadArgumentError: the set has no such split.
        """
        if split == "all":
            return self.table
        rows = self.table[self.table["split"] == (normalise_split(split) or split)]
        if rows.empty:
            present = self.table["split"].unique()
            message = f"split {split!r} has no images; choose one of {', '.join(present)}, or 'all' for every image"
            raise BadArgumentError(message, field="split", value=split, accepted=[*present, "all"])
        return rows

    def targets(self, split: str) -> np.ndarray:
        """Targets of a model for the rows of `split`.

        Returns:
            Single-label: int64 (images,), indices into `class_names`. Multi-label: float32 (images, classes) of 0 and
            1. Regression: float32 (images,), or (images, targets) for several columns.
        """
        labels = self.rows(split)[list(self.label_columns)]
        if self.problem_type == SINGLE_LABEL:
            index = {name: position for position, name in enumerate(self.class_names)}
            return labels[self.label_columns[0]].map(index).to_numpy(dtype=np.int64)
        values = labels.to_numpy(dtype=np.float32)
        return values[:, 0] if self.problem_type == REGRESSION and values.shape[1] == 1 else values

    def unpredicted(self, split: str) -> Predictions:
        """Placeholder predictions, to check what a report asks of the labels before anything is computed."""
        rows, outputs = self.rows(split), len(self.class_names)
        scores = np.full((len(rows), outputs), 1 / outputs)
        targets = self.targets(split)
        return Predictions.of_table(rows, targets, scores, self.class_names, self.problem_type, self.class_order)

    def counts(self) -> pd.DataFrame:
        """Images by class (multi-label: positives; regression: values) and split, integers."""
        splits = [split for split in (*SPLITS, "all") if split in SPLITS or (self.table["split"] == split).any()]
        labels = self.table.groupby("split")[list(self.label_columns)]
        if self.problem_type == SINGLE_LABEL:
            counts = pd.crosstab(self.table[self.label_columns[0]], self.table["split"])
        else:
            counts = (labels.sum() if self.problem_type == MULTI_LABEL else labels.count()).T
        counts = counts.reindex(index=list(self.class_names), columns=splits, fill_value=0).astype(int)
        return counts.rename_axis(index="class", columns="split")


def keep_fraction(labelled: LabelledSet, fraction: float, seed: int = 0) -> LabelledSet:
    """The set with a share of its training patients (of its images where no patient is known), the rest left out.

    Args:
        labelled: the whole set.
        fraction: of the training patients, above 0 and up to 1.
        seed: draws the patients; with one seed a smaller share lies inside a larger one.

    Raises:
        BadArgumentError: the share has fewer patients than there are classes.
    """
    if fraction == 1:
        return labelled
    rows = labelled.rows("train")
    kept = fraction_of_patients(patient_groups(rows), labelled.targets("train"), fraction, seed)
    dropped = rows["id"][~kept]
    return dataclasses.replace(labelled, table=labelled.table[~labelled.table["id"].isin(dropped)])


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
    patient_column: str | None = None,
    positive_class: str | None = None,
    divide: Callable[[pd.DataFrame], pd.Series | None] | None = None,
) -> LabelledSet:
    """Read and check a labelled set.

    Args:
        data: a folder laid out as {train,val,test}/<class>/* or <class>/* (patients from a `metadata.csv` beside the
            folders), a CSV or parquet table (of paths, or a parquet file that holds the images), or a Hub id or folder
            that `datasets.load_dataset` reads.
        label_columns: "label" by default (for a multi-label or regression model its `class_names`).
        problem_type: by default single-label for one label column, multi-label for several of 0 and 1.
        class_names: the classes, in order; images of some may then be absent.
        image_column: of a table or a Hub data set.
        image_root: folder at which the relative paths of a table or data set start; by default its own.
        split_fractions: shares of patients for data without splits; `seed` deals them.
        seed: see `split_fractions`.
        need_splits: splits that must exist and are checked; () reads any set for use as a whole ("all").
        patient_column: column that names the patients, by default `patient_id`; "image" takes the images' names
            without left or right, "none" takes each image for a patient of its own.
        positive_class: of two classes the finding; by default as the names tell, or the order of the classes.
        divide: gives the splits of a table without them ("all" to use it as a whole), or None for `split_fractions`.

    Raises:
        BadDataError, BadArgumentError: anything that would make results wrong or impossible, in one line.
    """
    several = label_columns is None and class_names is not None and problem_type not in (None, SINGLE_LABEL)
    if label_columns is None:
        label_columns = tuple(class_names) if several else ("label",)
    table = _read_source(data, label_columns, image_column, image_root, allow_empty=class_names is not None)
    if several and not set(label_columns) <= set(table.columns) and "label" in table:
        label_columns = ("label",)  # of lists
    tables.check_columns(table, label_columns, data, "label_columns")
    if table.empty:
        raise BadDataError(f"{data} holds no image; give {ACCEPTED_DATA}", source=data)
    in_folders = Path(data).is_dir() and tuple(label_columns) == ("label",)
    asked = problem_type or (SINGLE_LABEL if in_folders and _class_folders(Path(data)) else None)
    table, label_columns, problem_type = unfold_lists(table, label_columns, asked, class_names, data)
    kind = infer_problem_type(table, label_columns, problem_type, data)
    if class_names is not None and kind != SINGLE_LABEL:
        label_columns = _in_order_of_model(label_columns, class_names, kind, data)
    has_splits = "split" in table
    if has_splits:
        table["split"] = tables.normalised_splits(table, data)
    elif need_splits:
        tables.check_split_column(table, label_columns, data)
    patients = find_patients(table, label_columns, patient_column, data, check=bool(need_splits))
    table = table.drop(columns=OWN_ID, errors="ignore").assign(patient_id=patients)
    tables.check_unique_images(table, data)
    table = table.sort_values("id", ignore_index=True)
    table, names, order = clean_labels(table, label_columns, kind, class_names, data, positive_class)
    if kind == SINGLE_LABEL and class_names is None and name_splits(names):
        raise BadDataError(
            f"{data}: the classes would be {join_names(names)}, which are names of splits; lay folders out as "
            "{train,val,test}/<class>/, and name the column of the labels with `label_columns`",
            source=data,
        )
    if kind == SINGLE_LABEL and len(names) < 2:
        inner = Path(data, names[0])
        deeper = f"; or give {inner}, which looks like a set" if inner.is_dir() and _class_folders(inner) else ""
        message = f"{data} has a single class, {names[0]!r}; classification needs at least two{deeper}"
        raise BadDataError(message, source=data)
    table["image"] = pd.Series(tables.find_files(table["image"], data), table.index, dtype=object)
    if not has_splits:
        table["split"] = "all"
    found = LabelledSet(table, kind, names, tuple(label_columns), order)
    checked_as_labelled = bool(need_splits)
    if not has_splits and need_splits:
        splits = divide(table) if divide else None
        if splits is None:
            splits = assign_splits(patient_groups(table), _strata(found, "all"), split_fractions, seed)
        table["split"] = splits
        need_splits = () if "all" in set(splits) else need_splits
    if has_splits and not {"train", "val"}.isdisjoint(need_splits):
        _take_validation(found, split_fractions, seed, data)
    checked = table[table["split"].isin(need_splits)] if need_splits else table
    tables.check_images_exist(checked, data)
    if need_splits:
        tables.check_needed_splits(table, need_splits, data)
        check_no_patient_leak(table)
        tables.check_class_coverage(found.counts(), need_splits, data)
    if checked_as_labelled:
        check_identical_content(checked, label_columns, data)
    if len(need_splits) == len(SPLITS):
        _say_split(found, has_splits, data)
    return found


def _take_validation(found: LabelledSet, fractions: Sequence[float], seed: int, data: str) -> None:
    """Make the val split from train, by patient, where only train and test are given."""
    table, (train, val, _) = found.table, fractions
    if set(table["split"]) != {"train", "test"} or not val > 0:
        return
    check_no_patient_leak(table)
    rows = found.rows("train")
    shares = (train / (train + val), val / (train + val), 0)
    table.loc[rows.index, "split"] = assign_splits(patient_groups(rows), _strata(found, "train"), shares, seed)
    logger.info("%s has no val split: %.0f%% of train are taken for it, by `split_fractions`", data, 100 * shares[1])


def _strata(found: LabelledSet, split: str) -> np.ndarray:
    """Labels by which a split is stratified."""
    # Class names and not their indices: a model's own order of classes must not change the split.
    single = found.problem_type == SINGLE_LABEL
    return found.rows(split)[found.label_columns[0]].to_numpy(str) if single else found.targets(split)


def _say_split(found: LabelledSet, given: bool, data: str) -> None:
    """Log the order of the classes, and whether images are split by patient."""
    table, names = found.table, found.class_names
    if found.problem_type == SINGLE_LABEL:
        _say_order(names, found.class_order, data)
    patients = table["patient_id"].nunique()
    if patients:
        by = f"by patient: {len(table)} images, {patients} patients"
    else:
        by = f"by image, for lack of patients (a column patient_id, or `patient_column`): {len(table)} images"
    counts = ", ".join(f"{split} {(table['split'] == split).sum()}" for split in SPLITS)
    logger.info("%s: %s %s; %s", data, "splits as given, checked" if given else "split", by, counts)


def _say_order(names: Sequence[str], order: Sequence[str] | None, data: object) -> None:
    """Log the order of the classes, or which of two is the finding."""
    if len(names) == 2 and order:
        logger.info("%s: the finding is %s (`positive_class` sets another)", data, order[-1])
    elif len(names) == 2:
        message = "%s: %s is taken as the finding, since no class has a name like normal; `positive_class` sets it"
        logger.warning(message, data, names[1])
    elif order:
        logger.info("%s: classes in their order (`class_names` sets another): %s", data, join_names(order, 50))
    else:
        message = "%s: the order of the classes %s is unknown, so no quadratic kappa; set it with `class_names`"
        logger.info(message, data, join_names(names, 50))


def _read_source(
    data: str, label_columns: Sequence[str], image_column: str, image_root: str | None, allow_empty: bool
) -> pd.DataFrame:
    path = Path(data)
    if path.is_dir():
        folders = _class_folders(path)
        if folders:
            return _read_folder(path, folders, allow_empty)
        if not any(path.rglob("*.*")):
            raise BadDataError(f"{data} holds no image; give {ACCEPTED_DATA}", source=data)
        return _read_stored(data, image_column, label_columns, image_root)
    if path.is_file():
        tables.check_suffix(path, ACCEPTED_DATA)
        if holds_images(path, image_column):
            return _read_stored(data, image_column, label_columns, image_root)
        table = tables.read_table(path, label_columns)
        if image_column != "id":
            table = table.rename(columns={"id": OWN_ID})
        return tables.table_images(table, path, image_column, image_root)
    if is_hub_id(data):
        return _read_stored(data, image_column, label_columns, image_root)
    raise BadDataError(f"data {data} does not exist; give {ACCEPTED_DATA}", source=data)


def _class_folders(root: Path) -> dict[str | None, list[Path]]:
    """Class folders by split (None: no split folders); empty where `root` has no image in any class folder."""
    folders = _folders(root)
    splits = splits_of(folder.name for folder in folders)
    found = {splits[folder.name]: _folders(folder) for folder in folders if folder.name in splits} or {None: folders}
    if len(splits) > len(set(splits.values())):
        message = f"{root} has two folders for one split ({join_names(sorted(map(str, splits)))}); keep one"
        raise BadDataError(message, source=root)
    inner = (str(folder) for folders in found.values() for folder in folders)
    return found if any(next(walk_images(folder), None) for folder in inner) else {}


def _read_folder(root: Path, folders: dict[str | None, list[Path]], allow_empty: bool) -> pd.DataFrame:
    """Table of the images of `_class_folders(root)`: `id`, `image`, `label`, `split` where there are split folders.

    The columns of `metadata.csv` beside the folders are added; its `image` column holds paths relative to it. Folders
    of splits may also lie within those of the classes.
    """
    rows = []
    for split, parents in folders.items():
        for parent in parents:
            images = find_images(parent)
            if not images and not allow_empty:  # an evaluation need not hold every class
                message = f"class folder {parent} holds no image; add some, or remove the folder"
                raise BadDataError(message, source=parent)
            for path in images:
                inner = None if split else _split_within(path.relative_to(parent))
                rows.append((path.relative_to(root).as_posix(), str(path.absolute()), parent.name, split or inner))
    if unfit := [as_utf8(name) for name, path, _, _ in rows if as_utf8(path) != path]:
        message = f"{root}: the paths of {len(unfit)} images are not UTF-8 ({join_names(unfit)}); rename them"
        raise BadDataError(message, rows=unfit, source=root)
    if not allow_empty:
        tables.check_inner_folders(root, [(row[2], Path(row[0]).parts) for row in rows])
    used, others = {row[0] for row in rows}, []
    warn_of_passed_over(root, others, [name for name in walk_images(str(root), others) if name not in used])
    table = pd.DataFrame(rows, columns=["id", "image", "label", "split"])
    if table["split"].isna().all():
        table = table.drop(columns="split")
    elif table["split"].isna().any():
        outside = table.loc[table["split"].isna(), "id"]
        message = f"{root}: {len(outside)} images lie in no split ({join_names(outside)}), where others lie in one"
        raise BadDataError(f"{message}; lay them out as {{train,val,test}}/<class>/", rows=outside, source=root)
    return _with_metadata(table, root / METADATA) if (root / METADATA).is_file() else table


def _split_within(path: Path) -> str | None:
    """Split of the first folder of `path` that is named like one."""
    return next((split for folder in path.parts[:-1] if (split := normalise_split(folder))), None)


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _with_metadata(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    metadata = read_metadata(path)
    undescribed = table.loc[~table["id"].isin(metadata["image"]), "id"]
    if len(undescribed) == len(table):
        raise BadDataError(
            f"{path} describes none of the images: it names {metadata['image'].iloc[0]!r} where the folder has "
            f"{table['id'].iloc[0]!r}; give paths relative to {path.parent}",
            source=path,
        )
    if len(undescribed):
        logger.warning("%s does not describe %d of the images (%s)", path, len(undescribed), join_names(undescribed))
    # The folders are what the user sees and moves files between: they decide over the metadata's columns.
    drop = [name for name in ("label", "split") if name in metadata.columns]
    extra = metadata.drop(columns=drop).rename(columns={"id": OWN_ID})
    return table.merge(extra.rename(columns={"image": "id"}), on="id", how="left", validate="one_to_one")


def _read_stored(data: str, image_column: str, label_columns: Sequence[str], image_root: str | None) -> pd.DataFrame:
    """Table of every split of a data set that `datasets` reads; one published as a single part has no splits yet.

    Class labels become their names. An image is the path of its file where it lies in one, else its encoded bytes,
    which are held in memory: about 0.1 MB for each photograph of 512 pixels. An id is the name of the file where all
    names differ, else such as "train/17".
    """
    parts = load_splits(data, ACCEPTED_DATA)
    splits = splits_of(parts)
    unknown = [name for name in parts if name not in splits]
    if unknown and len(parts) > 1:
        raise BadDataError(f"{data} has the split(s) {join_names(unknown)}; {ACCEPTED_SPLITS}", source=data)
    found, roots = [], roots_of(data, image_root)
    for name, part in parts.items():
        table = _table_of_part(part, find_image_column(part, image_column, data), roots, label_columns)
        table["number"] = [f"{splits.get(name, name)}/{index}" for index in range(len(table))]
        found.append(table.assign(split=splits[name]) if len(parts) > 1 else table)
    table = pd.concat(found, ignore_index=True)
    numbers = table.pop("number")
    return table.assign(id=stored_ids(table["id"], table.get(OWN_ID), numbers, os.path.abspath(data)))


def _table_of_part(
    part: "datasets.Dataset", image_column: str, roots: Sequence[str], label_columns: Sequence[str]
) -> pd.DataFrame:
    import datasets

    images = list(part.cast_column(image_column, datasets.Image(decode=False))[image_column])
    table = part.remove_columns(image_column).to_pandas()
    for name, feature in part.features.items():
        if isinstance(feature, datasets.ClassLabel):
            # -1, the mark of a hidden label, becomes missing. The order of the names is that of grades.
            texts = table[name].map(dict(enumerate(feature.names)))
            # Names in the order of the alphabet state none.
            ordered = feature.names != sorted(feature.names)
            table[name] = pd.Categorical(texts, feature.names, ordered=ordered) if name in label_columns else texts
        elif isinstance(inner := getattr(feature, "feature", None), datasets.ClassLabel):
            table[name] = [inner.int2str([int(index) for index in found]) for found in table[name]]
            table.attrs[name] = inner.names  # `unfold_lists` takes their order
    table = table.rename(columns=str.strip).rename(columns={"id": OWN_ID})
    contents = [content_of(image, roots) for image in images]
    return table.assign(image=pd.Series(contents, dtype=object), id=[image and image["path"] for image in images])


def _in_order_of_model(
    columns: Sequence[str], class_names: Sequence[str], problem_type: str, data: str
) -> tuple[str, ...]:
    if problem_type == MULTI_LABEL and set(columns) == set(class_names):
        return tuple(class_names)
    if problem_type == REGRESSION and len(columns) == len(class_names):
        return tuple(columns)
    raise BadArgumentError(
        f"{data}: label columns {join_names(columns, 20)} do not fit the model, which predicts "
        f"{join_names(class_names, 20)}; give those columns with `label_columns`",
        field="label_columns", value=columns, accepted=class_names,
    )  # fmt: skip
