"""What all units together came to: counts, rejected images, exact duplicates."""

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ...runs.files import whole_file
from .records import Records


@dataclass(frozen=True)
class Summary:
    """Counts over the records in the output folder.

    Attributes:
        units: finished; `images` of the source are in them, of which `written` are in the shards.
        duplicates: written images whose pixels equal those of an earlier one.
        image_bytes, shard_bytes: sizes of the encoded images and of the parquet files.
        first_rejected: "id: reason" of one, or None.
    """

    units: int
    images: int
    written: int
    rejected: int
    duplicates: int
    image_bytes: int
    shard_bytes: int
    first_rejected: str | None


def summarise(records: Records) -> Summary:
    """Write `rejected.csv` and `duplicates.csv` and count."""
    names = ("images", "written", "image_bytes", "shard_bytes")
    counts = dict.fromkeys(names, 0)
    shards: list[tuple[Path, int]] = []
    units = rejected = 0
    first_rejected = None
    with _rows_of_csv(records.out / "rejected.csv", ("id", "reason")) as rows:
        for record in records:
            units += 1
            rejected += len(record.rejected)
            for name in names:
                counts[name] += getattr(record, name)
            rows.writerows(record.rejected)
            if first_rejected is None and record.rejected:
                first_rejected = ": ".join(record.rejected[0])
            if record.written:
                shards.append((records.shard(record.unit), record.written))
    duplicates = 0
    with _rows_of_csv(records.out / "duplicates.csv", ("id", "duplicate_of")) as rows:
        for pair in exact_duplicates(shards):
            rows.writerow(pair)
            duplicates += 1
    return Summary(units=units, rejected=rejected, duplicates=duplicates, first_rejected=first_rejected, **counts)


def exact_duplicates(shards: Iterable[tuple[Path, int]]) -> Iterator[tuple[str, str]]:
    """(id, id of the first image with the same hash) of every later one, in the order of the shards.

    Some 50 bytes an image are held, whatever the images' size.

    Args:
        shards: path and number of rows of each.
    """
    shards = list(shards)
    ends = np.cumsum([rows for _, rows in shards])
    hashes = np.empty((int(ends[-1]) if shards else 0, 2), np.uint64)
    for (path, rows), end in zip(shards, ends, strict=True):
        column = pq.read_table(path, columns=["hash"])["hash"].to_pylist()
        hashes[end - rows : end] = np.frombuffer(bytes.fromhex("".join(column)), np.uint64).reshape(-1, 2)
    order = np.lexsort(hashes.T)  # stable: of equal ones the earliest comes first
    same = np.zeros(len(order), bool)
    same[1:] = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    del hashes
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    later, first = order[same], order[starts[same]]
    sorting = np.argsort(later)
    ids = _ids(shards, ends, np.union1d(later, first))
    for place in sorting:
        yield ids[int(later[place])], ids[int(first[place])]


def _ids(shards: list[tuple[Path, int]], ends: np.ndarray, positions: np.ndarray) -> dict[int, str]:
    """Ids at some positions of all rows; only the shards that hold one are read."""
    found: dict[int, str] = {}
    in_shard = np.searchsorted(ends, positions, side="right")
    for number in np.unique(in_shard):
        path, rows = shards[number]
        here = positions[in_shard == number]
        column = pq.read_table(path, columns=["id"])["id"].take(here - (ends[number] - rows))
        found.update(zip(here.tolist(), column.to_pylist(), strict=True))
    return found


@contextmanager
def _rows_of_csv(path: Path, header: tuple[str, ...]) -> Iterator[Any]:
    """A writer of rows to a file that appears whole."""
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(header)
        yield rows
