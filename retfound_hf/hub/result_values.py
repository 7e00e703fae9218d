"""The numbers that the results of a folder hold, against which its card is read."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..evaluation.subgroups import FEWEST
from ..runs.errors import RetFoundError
from .contents import CITED, read_json
from .small_groups import SUBGROUPS, read_groups

METRICS = "metrics.json"
TABLES = ("intervals.csv", SUBGROUPS, "calibration.csv", "operating_points.csv")
RESULT_FILES = (METRICS, *TABLES, CITED)
# Names, and the share of resamples without a value, are no results.
PASSED_OVER = {"column", "group", "metric", "class", "criterion", "method", "undefined"}
COUNTS = {"n", "rows", "positives", "negatives"}


@dataclass(frozen=True)
class Results:
    """What the files of a folder tell.

    Attributes:
        figures: values of metrics, their intervals and the like.
        counts: of images, patients and cases.
        targets: what thresholds were chosen for.
        groups: (column, group) of subgroups.
    """

    figures: set[float]
    counts: set[float]
    targets: set[float]
    groups: tuple[tuple[str, str], ...]


def read_results(folder: Path) -> Results:
    """What is known of a folder: its metrics and tables, those of its validation split, and what it cites.

    Raises:
        RetFoundError: a file that cannot be read, or a cited value without a source.
    """
    results = Results(set(_cited(folder / CITED)), set(), set(), ())
    groups: list[tuple[str, str]] = []
    for place in (folder, folder / "validation"):
        if (place / METRICS).is_file():
            for number in numbers_in(read_json(place / METRICS)):
                (results.counts if isinstance(number, int) else results.figures).add(float(number))
        for row in (row for name in TABLES for row in _rows(place / name)):
            for column, cell in row.items():
                if column not in PASSED_OVER and is_number(cell):
                    kind = results.counts if column in COUNTS else results.figures
                    (results.targets if column == "target" else kind).add(float(cell))
            if "group" in row:
                groups.append((row["column"], row["group"]))
    return Results(results.figures, results.counts, results.targets, tuple(dict.fromkeys(groups)))


def settings_of(folder: Path, keys: set[str]) -> dict[str, set[float]]:
    """The values of single settings, by key, in `config.json` and in the arguments of `run.json`, where they tell."""
    found: dict[str, set[float]] = {}
    for name in ("config.json", "run.json"):
        path = folder / name
        told = read_json(path) if path.is_file() else {}
        for key, value in _entries(told.get("arguments", {}) if name == "run.json" else told):
            if key in keys and isinstance(value, (int, float)) and not isinstance(value, bool):
                found.setdefault(key, set()).add(float(value))
    return found


def numbers_in(value: Any) -> Iterator[float]:
    """All numbers of a JSON value; whole ones come as `int`."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def is_number(cell: str | None) -> bool:
    """Whether a cell of a CSV table is a number."""
    return re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?", cell or "") is not None


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _entries(item)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    if path.name == SUBGROUPS:  # what is not published proves nothing
        return [row for row in read_groups(path) if float(row["n"]) >= FEWEST]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _cited(path: Path) -> Iterator[float]:
    for number, row in enumerate(_rows(path), 1):
        value = (row.get("value") or "").strip()
        share = value.endswith("%")
        if not is_number(value.rstrip("% ")) or not (row.get("source") or "").strip():
            raise RetFoundError(
                f"row {number} of {path} is {json.dumps(row)}; it needs the columns value (a number) and source "
                "(where it is from)"
            )
        yield float(value.rstrip("% ")) / (100 if share else 1)
