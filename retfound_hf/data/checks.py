"""What must hold of a labelled set before anything is computed from it, and the one line that says what does not."""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from ..errors import RetFoundError, join_names, nearest
from .splits import SPLITS

logger = logging.getLogger(__name__)
ACCEPTED_DATA = (
    "a folder laid out as {train,val,test}/<class>/*, a CSV or parquet table with the columns image and label, "
    "or the id of a data set on the Hugging Face Hub"
)
HASHED_BYTES_LIMIT = 256 * 2**20
PATIENTS = re.compile(r"(patient|subject|person|participant|pat)s?[ _.-]?(id|identifier|nr|no|num|number|code)?", re.I)


def check_columns(table: pd.DataFrame, wanted: Sequence[str], source: object, option: str) -> None:
    """Raise unless `table` has the columns `wanted`; `option` is the flag that names other ones."""
    for name in wanted:
        if name not in table.columns:
            columns = [str(column) for column in table.columns]
            raise RetFoundError(
                f"{source} has no column {name!r}; its columns are {join_names(columns, 20)}; name the right one with "
                f"{option}{nearest(name, columns)}"
            )


def check_patients(table: pd.DataFrame, patients: pd.Series, label_columns: Sequence[str], data: object) -> None:
    """Raise if the patients stand in a column of another name; warn where some images have none."""
    others = [name for name in table.columns if PATIENTS.fullmatch(str(name)) and name not in label_columns]
    if "patient_id" not in table and others:
        raise RetFoundError(
            f"{data} has no column patient_id, but {join_names(map(repr, others))}: call it patient_id, so that no "
            "patient lies in two splits, or remove it if it is none"
        )
    unknown = int((patients.isna() | (patients == "")).sum())
    if 0 < unknown < len(table):
        logger.warning("%s: %d of %d images have no patient_id; each counts as a patient", data, unknown, len(table))


def check_needed_splits(table: pd.DataFrame, need_splits: Sequence[str], data: object) -> None:
    """Raise unless every split of `need_splits` has an image."""
    present = [split for split in SPLITS if (table["split"] == split).any()]
    missing = [split for split in need_splits if split not in present]
    if missing:
        raise RetFoundError(
            f"{data} has no {' and no '.join(missing)} split (it has {join_names(present)}); add it, or leave "
            "the splits out altogether to have them made by patient"
        )


def check_unique_images(table: pd.DataFrame, data: object) -> None:
    """Raise if an image is listed twice: its rows could disagree, or lie in two splits."""
    repeated = table[table.duplicated("id", keep=False)]
    if len(repeated) == 0:
        return
    across = repeated.groupby("id")["split"].nunique() > 1 if "split" in repeated else pd.Series(dtype=bool)
    if across.any():
        raise RetFoundError(
            f"{data}: {across.sum()} image(s) are in more than one split ({join_names(across.index[across])}); "
            "list each image once"
        )
    names = repeated["id"].unique()
    raise RetFoundError(
        f"{data}: {len(names)} image(s) are listed more than once ({join_names(names)}); list each once"
    )


def check_images_exist(table: pd.DataFrame, data: object) -> None:
    """Raise if image files are absent; images held as bytes pass."""
    missing = [path for path in table["image"] if isinstance(path, str) and not os.path.isfile(path)]
    if missing:
        raise RetFoundError(
            f"{data}: {len(missing)} of {len(table)} image files do not exist ({join_names(missing)}); relative paths "
            "start at the table's folder, or at --image_root"
        )


def check_labels_present(table: pd.DataFrame, columns: Sequence[str], data: object) -> None:
    """Raise if a label is missing, naming the images."""
    for column in columns:
        missing = table.loc[table[column].isna(), "id"]
        if len(missing):
            raise RetFoundError(
                f"{data}: {len(missing)} of {len(table)} rows have no label in column {column!r} "
                f"({join_names(missing)}); label them or remove their rows"
            )


def check_spelling(names: Iterable[str], data: object) -> None:
    """Raise if two classes differ in nothing but case, spaces, hyphens or underscores."""
    seen: dict[str, str] = {}
    for name in sorted(set(names)):
        if (other := seen.setdefault(bare_name(name), name)) != name:
            raise RetFoundError(
                f"{data}: classes {other!r} and {name!r} look like one class spelled in two ways; "
                "give it one name in all splits"
            )


def bare_name(name: str) -> str:
    """A name without what two spellings of it differ in: case, spaces, hyphens, underscores."""
    return "".join(name.casefold().replace("_", " ").replace("-", " ").split()) or name


def check_class_coverage(counts: pd.DataFrame, need_splits: Sequence[str], data: object) -> None:
    """Raise if training would never see a class that it is validated or tested on; warn of the reverse.

    Args:
        counts: images (or positives, for multi-label) by class and split.
    """
    if "train" in need_splits:
        untrained = counts.index[(counts["train"] == 0) & (counts.sum(axis=1) > 0)]
        if len(untrained):
            raise RetFoundError(
                f"{data}: the train split has no image of class {join_names(untrained)}, which other splits have; "
                "add some, or remove the class"
            )
    for split in need_splits:
        absent = counts.index[counts[split] == 0]
        if split != "train" and len(absent):
            logger.warning(
                "%s: the %s split has no image of class %s; metrics that need one will be null",
                data, split, join_names(absent),
            )  # fmt: skip


def warn_identical_content(table: pd.DataFrame, data: object) -> None:
    """Warn of files in different splits with the same content; skipped where it would mean reading 256 MB or more."""
    files = table.loc[table["image"].map(lambda image: isinstance(image, str)), ["id", "image", "split"]].copy()
    if files["split"].nunique() < 2:
        return
    files["size"] = [os.path.getsize(path) for path in files["image"]]
    alike = files[files.groupby("size")["split"].transform("nunique") > 1]
    if alike.empty or alike["size"].sum() > HASHED_BYTES_LIMIT:
        return
    alike = alike.assign(digest=[hashlib.blake2b(Path(path).read_bytes()).hexdigest() for path in alike["image"]])
    same = [g for _, g in alike.groupby("digest", sort=False) if g["split"].nunique() > 1]
    if same:
        named = "; ".join(" = ".join(group["id"]) for group in same[:5])
        logger.warning("%s: %d image(s) occur in more than one split under other names (%s)", data, len(same), named)
