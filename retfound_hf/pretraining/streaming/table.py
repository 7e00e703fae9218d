"""Rows of shards that are opened when they are asked for."""

import shutil
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from ...runs.errors import RetFoundError
from ...runs.files import whole_file
from .shards import StreamShard

BATCH = 256  # rows that are converted at a time


class StreamedTable:
    """Reads as a `datasets.Dataset` with the columns `image` and `id` does, of which few shards are here at a time.

    An open shard is an Arrow file in `folder`, mapped into the memory of every loader process. Whoever needs a shard
    first fetches it; `remove` makes room. Neither changes what is read.

    Args:
        folder: on this machine, of this process and its loaders alone.
        limit: shards that are meant to be here at a time.
    """

    def __init__(self, shards: Sequence[StreamShard], folder: Path, limit: int):
        self.shards = tuple(shards)
        self.folder = folder
        self.limit = limit
        self.ends = np.cumsum([shard.rows for shard in shards])
        self.closed = False
        # Of each shard its batches, and where each of them ends.
        self._mapped: OrderedDict[int, tuple[list[pa.RecordBatch], np.ndarray]] = OrderedDict()

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, rows: int | Sequence[int]) -> dict[str, Any]:
        """`image` (`bytes` and `path`) and `id` of one row, or lists of both."""
        if isinstance(rows, (int, np.integer)):
            return self._row(int(rows))
        found = [self._row(row) for row in rows]
        return {name: [row[name] for row in found] for name in ("image", "id")}

    @property
    def rows_at_hand(self) -> int:
        """Rows that one fetch brings here: those of the first shard."""
        return self.shards[0].rows

    def shards_of(self, rows: Iterable[int]) -> set[int]:
        """Numbers of the shards in which these rows lie."""
        return set(np.searchsorted(self.ends, np.asarray(rows), side="right").tolist())

    def present(self) -> set[int]:
        """Numbers of the shards that are open."""
        return {int(path.stem) for path in self.folder.glob("[0-9]*.arrow")}

    def fetch(self, number: int) -> Path:
        """Bring a shard here, if it is not; processes that ask at once wait for the first.

        Raises:
            RetFoundError: it cannot be had, or the table was closed.
        """
        path, shard = self.folder / f"{number}.arrow", self.shards[number]
        self._check_open()
        try:
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                with FileLock(self.folder / f"{number}.lock"):
                    if not path.exists():
                        shard.read(lambda parquet: _convert(parquet, path, shard.name), self.folder, self._check_open)
        finally:
            if self.closed:  # meanwhile
                self.clear()
        return path

    def remove(self, number: int) -> None:
        """Make room; a process that has the shard mapped keeps it until it opens others."""
        (self.folder / f"{number}.arrow").unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all that is here, and what is still on its way once it comes; nothing more is fetched."""
        self.closed = True
        self.clear()

    def clear(self) -> None:
        """Remove all that is here."""
        self._mapped.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_open(self) -> None:
        if self.closed:
            raise RetFoundError("the stream of shards is closed")

    def _row(self, row: int) -> dict[str, Any]:
        number = int(np.searchsorted(self.ends, row, side="right"))
        batches, ends = self._open(number)
        row -= int(self.ends[number]) - self.shards[number].rows
        index = int(np.searchsorted(ends, row, side="right"))
        batch = batches[index]
        place = row - int(ends[index]) + len(batch)
        return {name: batch.column(name)[place].as_py() for name in ("image", "id")}

    def _open(self, number: int) -> tuple[list[pa.RecordBatch], np.ndarray]:
        while number not in self._mapped:
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(self.fetch(number))))
            except FileNotFoundError:  # removed between the two
                continue
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
            self._mapped[number] = batches, np.cumsum([len(batch) for batch in batches])
        self._mapped.move_to_end(number)
        if len(self._mapped) > self.limit:
            self._mapped.popitem(last=False)
        return self._mapped[number]


def _convert(parquet: Path, target: Path, name: str) -> None:
    """Parquet, of which a row group is read at once, to an Arrow file, of which a row is."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("id", pa.string())])
    row = 0
    with (
        pq.ParquetFile(parquet) as source,
        whole_file(target) as partial,
        pa.ipc.new_file(str(partial), schema) as writer,
    ):
        has_ids = "id" in source.schema_arrow.names
        columns = ["image", "id"] if has_ids else ["image"]
        # Without threads, which do not survive the fork of a loader's process.
        for batch in source.iter_batches(BATCH, columns=columns, use_threads=False):
            numbered = pa.array([f"{name}/{row + place}" for place in range(len(batch))], pa.string())
            ids = batch.column("id").cast(pa.string()) if has_ids else numbered
            writer.write_batch(pa.record_batch([batch.column("image").cast(image), ids], schema=schema))
            row += len(batch)
