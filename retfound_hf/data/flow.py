"""Flow of images through the exclusions of a cohort, with counts of patients, eyes and images."""

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from .splits import SPLITS

Counts = dict[str, int | None]
COUNTED = ("patients", "eyes", "images")


@dataclass(frozen=True)
class Exclusion:
    """Images left out for one reason; patients and eyes are counted where their last image goes.

    Attributes:
        name: for programs, such as "too_short_follow_up".
        text: for readers.
        counts: of those left out.
    """

    name: str
    text: str
    counts: Counts


@dataclass
class Stage:
    """Some exclusions, and the counts left after them."""

    name: str
    text: str
    counts: Counts
    excluded: list[Exclusion] = field(default_factory=list)


class Flow:
    """A table of images on its way through the exclusions of a cohort.

    Args:
        images: columns `patient_id`, `eye`; all of them are in at the beginning.
        text: name of the first stage.
    """

    def __init__(self, images: pd.DataFrame, text: str = "Images in the table") -> None:
        self._has_eyes = images["eye"].notna().all()
        self.table = images
        self.stages = [Stage("read", text, self._count(images))]

    def stage(self, name: str, text: str) -> None:
        """Begin a stage: the exclusions that follow belong to it."""
        self.stages.append(Stage(name, text, self._count(self.table)))

    def exclude(self, name: str, text: str, out: pd.Series) -> None:
        """Leave out the images for which `out` (by the table's index) holds."""
        before = self._count(self.table)
        self.table = self.table[~out.reindex(self.table.index)]
        after = self._count(self.table)
        lost = {unit: None if value is None else value - after[unit] for unit, value in before.items()}
        self.stages[-1].excluded.append(Exclusion(name, text, lost))
        self.stages[-1].counts = after

    def as_dict(self) -> dict[str, Any]:
        """The stages; with columns `label` and `split` in the table also the counts of classes and splits."""
        stages = [
            {"name": stage.name, "text": stage.text,
             "excluded": [{"name": part.name, "text": part.text, **part.counts} for part in stage.excluded],
             **stage.counts}
            for stage in self.stages
        ]  # fmt: skip
        found: dict[str, Any] = {"stages": stages}
        if "label" in self.table:
            found["labels"] = self._count_labels(self.table)
        if "split" in self.table:
            parts = {split: self.table[self.table["split"] == split] for split in SPLITS}
            found["splits"] = {
                split: self._count(part) | {"labels": self._count_labels(part)} for split, part in parts.items()
            }
        return found

    def _count(self, table: pd.DataFrame) -> Counts:
        """Patients, eyes (None where an image of the flow names none) and images of a table."""
        eyes = int(table.groupby("patient_id")["eye"].nunique().sum()) if self._has_eyes else None
        return {"patients": int(table["patient_id"].nunique()), "eyes": eyes, "images": len(table)}

    def _count_labels(self, table: pd.DataFrame) -> dict[str, Counts]:
        return {str(label): self._count(part) for label, part in table.groupby("label")}


def format_counts(counts: Counts) -> str:
    """Counts in words, such as "12 patients, 20 eyes, 31 images"."""
    known = {unit: value for unit, value in counts.items() if unit in COUNTED and value is not None}
    return ", ".join(f"{value:,} {unit if value != 1 else unit[:-1]}" for unit, value in known.items())
