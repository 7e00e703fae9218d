"""Who was excluded, why, and who is left: counts of patients, eyes and images that add up."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..splits import SPLITS

Counts = dict[str, int | None]
UNITS = ("patients", "eyes", "images")


def count(table: pd.DataFrame) -> Counts:
    """Patients, eyes (None where an image names none) and images of a table."""
    eyes = None if table["eye"].isna().any() else table.groupby("patient_id")["eye"].nunique().sum()
    return {
        "patients": int(table["patient_id"].nunique()),
        "eyes": None if eyes is None else int(eyes),
        "images": len(table),
    }


def said(counts: Counts) -> str:
    """Such as "12 patients, 20 eyes, 31 images"."""
    known = {unit: value for unit, value in counts.items() if unit in UNITS and value is not None}
    return ", ".join(f"{value:,} {unit if value != 1 else unit[:-1]}" for unit, value in known.items())


@dataclass(frozen=True)
class Exclusion:
    """Images left out for one reason; patients and eyes are counted where their last image goes.

    Attributes:
        name: for programs, such as "too_short_follow_up".
        text: for readers.
    """

    name: str
    text: str
    counts: Counts


@dataclass
class Stage:
    """Some exclusions, and what is left after them."""

    name: str
    text: str
    counts: Counts
    excluded: list[Exclusion] = field(default_factory=list)


class Flow:
    """The way of a table of images through its exclusions.

    Args:
        images: columns `patient_id`, `eye`; all of them are in at the beginning.
    """

    def __init__(self, images: pd.DataFrame, text: str = "Images in the table") -> None:
        self._has_eyes = images["eye"].notna().all()
        self.table = images
        self.stages = [Stage("read", text, self._count())]

    def stage(self, name: str, text: str) -> None:
        """Begin a stage: the exclusions that follow belong to it."""
        self.stages.append(Stage(name, text, self._count()))

    def exclude(self, name: str, text: str, out: pd.Series) -> None:
        """Leave out the images for which `out` (by the table's index) holds."""
        before = self._count()
        self.table = self.table[~out.reindex(self.table.index)]
        after = self._count()
        lost = {unit: None if value is None else value - after[unit] for unit, value in before.items()}
        self.stages[-1].excluded.append(Exclusion(name, text, lost))
        self.stages[-1].counts = after

    def as_dict(self) -> dict[str, Any]:
        """For `flow.json`: the stages; with columns `label` and `split` of the table also its classes and splits."""
        stages = [
            {
                "name": stage.name,
                "text": stage.text,
                "excluded": [{"name": part.name, "text": part.text, **part.counts} for part in stage.excluded],
                **stage.counts,
            }
            for stage in self.stages
        ]
        found: dict[str, Any] = {"stages": stages}
        if "label" in self.table:
            found["labels"] = {str(label): self._count(part) for label, part in self.table.groupby("label")}
        if "split" in self.table:
            found["splits"] = {
                split: self._count(part) | {"labels": {str(k): self._count(v) for k, v in part.groupby("label")}}
                for split in SPLITS
                for part in (self.table[self.table["split"] == split],)
            }
        return found

    def _count(self, table: pd.DataFrame | None = None) -> Counts:
        counts = count(self.table if table is None else table)
        return counts if self._has_eyes else counts | {"eyes": None}
