"""The record of each finished unit, by which a stopped run goes on and the parts of a run find together."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...runs.errors import RetFoundError
from ...runs.files import refuse_existing, write_json

FOLDER = ".prepared"
SUMMARY_FILES = ("README.md", "dataset_info.json", "rejected.csv", "duplicates.csv", "run.json")


@dataclass(frozen=True)
class Record:
    """What became of a unit.

    Attributes:
        unit: its index.
        identity: see `items.identity`.
        source: the source's name, for the error where another one is put into the same folder.
        options: what the shard depends on beside its images.
        images: in the unit; `written` of them are in the shard.
        image_bytes, shard_bytes: sizes of the encoded images and of the parquet file (0 without one).
        rejected: (id, reason) pairs.
    """

    unit: int
    identity: str
    source: str
    options: dict[str, Any]
    images: int
    written: int
    image_bytes: int
    shard_bytes: int
    rejected: Sequence[tuple[str, str]]


class Records:
    """The records in an output folder.

    Args:
        out: output folder.
        source: name of the source.
        options: of this run; records made with others are refused.
    """

    def __init__(self, out: Path, source: str, options: dict[str, Any]):
        self.out = out
        self.source = source
        self.options = json.loads(json.dumps(options))  # as they come back from a file
        self._folder = out / FOLDER

    def open(self, overwrite: bool) -> None:
        """Make the folder ready for this run.

        Raises:
            RetFoundError: it holds something else, or shards made with other options, and `overwrite` is false.
        """
        if not self._folder.is_dir():
            refuse_existing(self.out, overwrite)
        if overwrite:
            # Records first: a shard without one is made anew.
            shutil.rmtree(self._folder, ignore_errors=True)
            for path in [*self.out.glob("data/train-*.parquet"), *(self.out / name for name in SUMMARY_FILES)]:
                path.unlink(missing_ok=True)
        for record in self:
            for name in self.options.keys() | record.options.keys():
                old, new = record.options.get(name), self.options.get(name)
                if old != new:
                    raise RetFoundError(
                        f"{self.out} holds shards made with --{name} {_said(old)}, not {_said(new)}; give the same "
                        "options or another folder, or begin anew with --overwrite_output_dir"
                    )
        self._folder.mkdir(parents=True, exist_ok=True)

    def __iter__(self) -> Iterator[Record]:
        """All records, by unit."""
        for path in sorted(self._folder.glob("[0-9]*.json"), key=lambda path: int(path.stem)):
            if (record := self._read(path)) is not None:
                yield record

    def is_done(self, unit: int, identity: str) -> bool:
        """Whether the unit's shard is there and its images have not changed.

        Raises:
            RetFoundError: the shard is of another source.
        """
        record = self._read(self._path(unit))
        if record is None:
            return False
        if record.identity != identity:
            if record.source != self.source:
                raise RetFoundError(
                    f"{self.out} holds shards of {record.source}, not of {self.source}; choose another folder, or "
                    "begin anew with --overwrite_output_dir"
                )
            return False
        shard = self.shard(unit)
        return (shard.stat().st_size if shard.is_file() else 0) == record.shard_bytes

    def write(self, record: Record) -> None:
        write_json(self._path(record.unit), asdict(record))

    def remove(self, unit: int) -> None:
        """Forget a unit and remove its shard."""
        self._path(unit).unlink(missing_ok=True)
        self.shard(unit).unlink(missing_ok=True)

    def shard(self, unit: int) -> Path:
        return self.out / "data" / f"train-{unit:05d}.parquet"

    def _path(self, unit: int) -> Path:
        return self._folder / f"{unit:05d}.json"

    @staticmethod
    def _read(path: Path) -> Record | None:
        try:
            return Record(**json.loads(path.read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):  # absent, or not as this version writes it
            return None


def _said(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "(none)"
    return "(none)" if value is None else str(value)
