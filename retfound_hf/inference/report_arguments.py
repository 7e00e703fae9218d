"""What `evaluate` and `finetune` report: intervals, the level of the metrics, subgroups."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from ..evaluation.bands import UNKNOWN, column_groups
from ..evaluation.bootstrap import MIN_DEFINED, RESAMPLES
from ..runs.errors import RetFoundError, nearest

IDENTIFYING = ("patient_id", "id", "image")  # a group of these is one patient or one image, by name
MOST_ALONE = 0.5  # share of patients with a group of their own: above it, a column tells who they are


@dataclass
class ReportArguments:
    confidence_intervals: bool = field(
        default=False, metadata={"help": "95%% intervals of all metrics, by a bootstrap over patients"}
    )
    resamples: int = field(default=RESAMPLES, metadata={"help": "resamples of that bootstrap; its seed is 0"})
    level: Literal["image", "eye", "patient"] = field(
        default="image", metadata={"help": "unit of the metrics; eyes and patients get one score from their images"}
    )
    aggregate: Literal["mean", "max"] = field(
        default="mean", metadata={"help": "score of an eye or patient: mean of its images' scores, or the highest"}
    )
    label_conflicts: Literal["error", "max"] = field(
        default="error",
        metadata={"help": "images of an eye or patient with different labels: stop, or take the highest grade"},
    )
    subgroup_columns: list[str] | None = field(
        default=None, metadata={"help": "metrics per group of these columns; bands of numbers as in age:50,65"}
    )

    def __post_init__(self) -> None:
        if self.resamples < MIN_DEFINED:
            raise RetFoundError(f"--resamples {self.resamples} is too few for a 95% interval; at least {MIN_DEFINED}")
        for name in self.subgroups:  # a mistyped band shows here too, before anything is computed
            if name in IDENTIFYING:
                raise RetFoundError(
                    f"--subgroup_columns {name}: its groups are single patients or images, whose names would stand in "
                    "subgroups.csv and the card; give a column that many patients share, such as sex or camera"
                )

    @property
    def subgroups(self) -> dict[str, list[float] | None]:
        """Edges of the bands of each subgroup column, None where none are given."""
        return dict(_column_and_edges(text) for text in self.subgroup_columns or ())

    def check_columns(self, table: pd.DataFrame, data: str) -> None:
        """Raise unless the table of a labelled set has the subgroup columns, and groups of patients in them."""
        for name, edges in self.subgroups.items():
            if name not in table:
                names = [str(column) for column in table]
                known = ", ".join(column for column in names if column not in ("id", "image"))
                raise RetFoundError(
                    f"--subgroup_columns {name}: {data} has no such column; it has {known}{nearest(name, names)}"
                )
            alone, patients = _patients_alone(table, column_groups(table[name], edges))
            if alone > MOST_ALONE * patients:
                raise RetFoundError(
                    f"--subgroup_columns {name}: {alone} of the {patients} patients of {data} have a group of their "
                    "own, which tells who they are; give a column that many patients share, or bands as in age:50,65"
                )


def _patients_alone(table: pd.DataFrame, groups: np.ndarray) -> tuple[int, int]:
    """How many patients share none of their groups with another, and how many there are; the unknown group is shared.

    An image without a patient counts as one.
    """
    patients = table["patient_id"].where(table["patient_id"].notna(), table["id"])
    found = pd.DataFrame({"patient": patients.to_numpy(), "group": groups})
    sizes = found.groupby("group")["patient"].transform("nunique")
    shared = ((sizes > 1) | (found["group"] == UNKNOWN)).groupby(found["patient"]).any()
    return int((~shared).sum()), len(shared)


def _column_and_edges(text: str) -> tuple[str, list[float] | None]:
    name, colon, edges = text.partition(":")
    try:
        return name, [float(edge) for edge in edges.split(",")] if colon else None
    except ValueError as error:
        raise RetFoundError(f"--subgroup_columns {text}: edges of bands are numbers, as in age:50,65") from error


def known(rows: pd.DataFrame, column: str) -> bool:
    """Whether any row has a value in a column."""
    return column in rows and bool(rows[column].notna().any())
