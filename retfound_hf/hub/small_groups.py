"""Groups of few patients, which stay at home: their figures are those of one or two people, their name may be one."""

import csv
from collections.abc import Iterator
from pathlib import Path

from ..evaluation.subgroups import FEWEST
from ..runs.errors import RetFoundError
from ..runs.files import whole_file

SUBGROUPS = "subgroups.csv"


def hide_small_groups(path: Path) -> None:
    """Rewrite a `subgroups.csv` without the groups of fewer than 10 patients and without gaps to them.

    Raises:
        RetFoundError: a table that does not tell the number of patients.
    """
    rows = read_groups(path)
    small = set(_small(rows))
    kept = [row for row in rows if not any(_is_of(row, column, group) for column, group in small)]
    if len(kept) == len(rows):
        return
    with whole_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def check_no_small_groups(folder: Path, text: str) -> None:
    """Raise RetFoundError where a row of the card's tables is about a group of fewer than 10 patients."""
    for path in (folder / SUBGROUPS, folder / "validation" / SUBGROUPS):
        for column, group in _small(read_groups(path)) if path.is_file() else ():
            name = f"| {column.replace('|', '/')} | {group.replace('|', '/')} |"  # as tables of cards are written
            if any(line.lstrip().startswith(name) for line in text.splitlines()):
                raise RetFoundError(
                    f"{folder / 'README.md'} shows the group {group!r} of {column!r}, which has fewer than {FEWEST} "
                    "patients: its figures are theirs; remove such rows from the card"
                )


def read_groups(path: Path) -> list[dict[str, str]]:
    """The rows of a `subgroups.csv`.

    Raises:
        RetFoundError: it does not tell the column, the group and the number of patients in each row.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        for row in rows:
            float(row["n"]), row["column"] + row["group"]
    except (KeyError, TypeError, ValueError) as error:
        raise RetFoundError(
            f"{path} does not tell the column, the group and the number of patients (n) in each row; remove the file, "
            "or evaluate again"
        ) from error
    return rows


def _small(rows: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    yield from ((row["column"], row["group"]) for row in rows if not float(row["n"]) >= FEWEST)


def _is_of(row: dict[str, str], column: str, group: str) -> bool:
    """Whether a row is about a group, or about a gap (`A - B`) to it."""
    name = row["group"]
    of_group = name == group or name.startswith(f"{group} - ") or name.endswith(f" - {group}")
    return row["column"] == column and of_group
