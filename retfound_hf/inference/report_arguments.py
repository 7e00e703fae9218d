"""What `evaluate` and `finetune` report: intervals, the level of the metrics, subgroups."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from ..evaluation.bootstrap import MIN_DEFINED, RESAMPLES
from ..runs.errors import RetFoundError, nearest


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
        self.subgroups  # noqa: B018 - a mistyped band shows before anything is computed

    @property
    def subgroups(self) -> dict[str, list[float] | None]:
        """Edges of the bands of each subgroup column, None where none are given."""
        return dict(_column_and_edges(text) for text in self.subgroup_columns or ())

    def check_columns(self, columns: Sequence[str], data: str) -> None:
        """Raise unless the data have the subgroup columns."""
        for name in self.subgroups:
            if name not in columns:
                known = ", ".join(str(column) for column in columns if column not in ("id", "image"))
                raise RetFoundError(
                    f"--subgroup_columns {name}: {data} has no such column; it has {known}{nearest(name, columns)}"
                )


def _column_and_edges(text: str) -> tuple[str, list[float] | None]:
    name, colon, edges = text.partition(":")
    try:
        return name, [float(edge) for edge in edges.split(",")] if colon else None
    except ValueError as error:
        raise RetFoundError(f"--subgroup_columns {text}: edges of bands are numbers, as in age:50,65") from error


def known(rows: pd.DataFrame, column: str) -> bool:
    """Whether any row has a value in a column."""
    return column in rows and bool(rows[column].notna().any())
