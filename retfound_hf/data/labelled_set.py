"""Images with their patients, splits and labels, however they were stored."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..evaluation.inputs import ProblemType
from ..runs.errors import RetFoundError
from .folders import normalise_split
from .splits import SPLITS


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
