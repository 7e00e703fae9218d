"""`operating_points.json` of a model folder: thresholds that its validation images chose."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..evaluation.operating_points import MEASURES, OperatingPoint, measure_threshold
from ..runs.errors import RetFoundError
from ..runs.files import write_json
from .report_arguments import ReportArguments

logger = logging.getLogger(__name__)
POINTS_FILE = "operating_points.json"


def write_points(folder: Path, points: list[OperatingPoint], report: ReportArguments, images: int) -> None:
    """Write thresholds with the level that they hold for."""
    facts = {"chosen_on": "validation split", "images": images, "level": report.level, "aggregate": report.aggregate}
    write_json(folder / POINTS_FILE, {**facts, "points": [dataclasses.asdict(point) for point in points]})


def read_points(folder: str | Path, class_names: tuple[str, ...], report: ReportArguments) -> list[OperatingPoint]:
    """The thresholds of a model folder or Hub id; none, with a line in the log, where they are of another level."""
    path = Path(folder) / POINTS_FILE if Path(folder).exists() else _from_hub(str(folder))
    if path is None or not path.is_file():
        return []
    try:
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        points = [OperatingPoint(**point) for point in stored["points"]]
        level, how = stored["level"], stored["aggregate"]
    except (ValueError, TypeError, KeyError) as error:
        raise RetFoundError(f"{path} is damaged ({error}); remove it, or fine-tune again") from error
    if level != report.level or (level != "image" and how != report.aggregate):
        logger.warning(
            "the thresholds of %s are left out: they were chosen for the level %s (%s), and this report is about the "
            "level %s (%s)", path, level, how, report.level, report.aggregate,
        )  # fmt: skip
        return []
    return [point for point in points if point.label in class_names]


def _from_hub(repo_id: str) -> Path | None:
    """The file of a repository, None if it has none or, without a network, the cache has none of it."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo_id, POINTS_FILE))
    except (OSError, ValueError):
        return None


def points_table(
    points: list[OperatingPoint], truth: np.ndarray, scores: np.ndarray, class_names: tuple[str, ...], patients: Any
) -> pd.DataFrame:
    """What the thresholds reach on a set: one row per class and criterion.

    Args:
        truth: bool (N, C).
        scores: float (N, C).
        patients: (N,) names, None where unknown.

    Returns:
        `class`, `criterion`, `target`, `threshold`, then `sensitivity`, `specificity`, `ppv` and `npv`, each with its
        `_low` and `_high`, and `positives`, `negatives`.
    """
    rows = []
    for point in points:
        column = class_names.index(point.label)
        measured = measure_threshold(truth[:, column], scores[:, column], point.threshold, patients)
        row: dict[str, Any] = {"class": point.label, "criterion": point.criterion, "target": point.target,
                               "threshold": point.threshold}  # fmt: skip
        for name in MEASURES:
            found = measured[name]
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        positives = int(truth[:, column].sum())
        rows.append({**row, "positives": positives, "negatives": len(truth) - positives})
    return pd.DataFrame(rows)
