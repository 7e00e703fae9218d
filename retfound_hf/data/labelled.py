"""`DATA` of the commands: a folder, a table or a Hub data set as one table of images, patients, splits and labels."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ..evaluation.inputs import ProblemType
from ..runs.errors import RetFoundError
from . import checks
from .folders import class_folders, normalise_split, read_folder
from .labelled_set import LabelledSet
from .labels import as_text, clean_labels, infer_problem_type
from .splits import PAPER_FRACTIONS, SPLITS, assign_splits, check_no_patient_leak
from .stored import read_stored
from .tables import TABLE_SUFFIXES, holds_images, read_table, table_images


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
