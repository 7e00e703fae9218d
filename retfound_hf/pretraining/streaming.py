"""Streaming: shards are prefetched during training and removed after use, so that few are on the disk at a time.

`datasets` streams too, but neither resumes in the middle of an epoch without reading what came before it, nor bounds
the open shards.
"""

import hashlib
import logging
import shutil
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import broadcast_object_list
from filelock import FileLock

from ..data.parquet import bounded_batches, with_place
from ..errors import RetFoundError, one_line
from ..files import atomic_file
from .arguments import DataArguments
from .data import MicroBatch, Order, Position
from .stream_shards import StreamShard, list_shards, stream_fingerprint

HASH_LENGTH = 8  # in a folder's name
THREAD_NAME = "shard prefetch"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamedOrder(Order):
    """Order that opens few shards at a time, each on one process.

    An epoch shuffles the shards and concatenates their images, which are cut evenly among the processes; a shard at a
    cut is read by both neighbours. Each process shuffles the images of `mixed` shards at a time. So the order depends
    on the number of processes, unlike that of `Order`.

    Args:
        shard_rows: images of each shard; `num_images` is their sum, rounded down to a multiple of the processes.
        mixed: shards whose images are shuffled together.
    """

    shard_rows: tuple[int, ...] = ()
    mixed: int = 4

    def _rows(self, epoch: int) -> np.ndarray:
        ends = np.cumsum(self.shard_rows)
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.shard_rows))
        joined = np.concatenate([np.arange(ends[shard] - self.shard_rows[shard], ends[shard]) for shard in shuffled])
        share = self.num_images // self.num_processes
        own = joined[self.process * share : (self.process + 1) * share]
        # Indices where this process comes to its next shard.
        shards = np.searchsorted(ends, own, side="right")
        cuts = np.flatnonzero(np.diff(shards)) + 1
        generator = np.random.default_rng([self.seed, epoch, self.process, 1])
        groups = np.split(own, cuts[self.mixed - 1 :: self.mixed])
        return np.concatenate([generator.permutation(rows) for rows in groups])

    def _start(self, offset: int, number: int) -> int:
        return offset // self.num_processes + number * self.batch_size


class StreamedTable:
    """Table with the columns `image` and `id`, indexed as a `datasets.Dataset`, with few shards on this machine.

    An open shard is an Arrow file in `folder`, mapped into the memory of every loader process. Whoever needs a shard
    first fetches it; `remove` makes room. Neither changes what is read.

    Args:
        folder: of this process and its loaders alone.
        limit: shards that are meant to be open at a time.
    """

    def __init__(self, shards: Sequence[StreamShard], folder: Path, limit: int):
        self.shards, self.folder, self.limit = tuple(shards), folder, limit
        self.ends = np.cumsum([shard.rows for shard in shards])
        self.closed = False
        self.changed = threading.Condition()  # the reader went on, or the table was closed
        # By shard its batches, and the row at which each of them ends.
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
    def first_shard_rows(self) -> int:
        """Rows that one fetch makes readable."""
        return self.shards[0].rows

    def shards_of(self, rows: Iterable[int]) -> set[int]:
        """Numbers of the shards that hold these rows."""
        return set(np.searchsorted(self.ends, np.asarray(rows), side="right").tolist())

    def open_shards(self) -> set[int]:
        """Numbers of the shards that are on this machine."""
        return {int(path.stem) for path in self.folder.glob("[0-9]*.arrow")}

    def fetch(self, number: int) -> Path:
        """Bring a shard to this machine unless it is there; processes that ask at once wait for the first.

        Raises:
            RetFoundError: it cannot be had or is damaged, or the table was closed.
        """
        path, shard = self.folder / f"{number}.arrow", self.shards[number]
        self._check_open()
        try:
            if not path.exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                with FileLock(self.folder / f"{number}.lock"):
                    if not path.exists():
                        convert = partial(_to_arrow, target=path, shard=shard)
                        shard.read(convert, self.folder, self._check_open)
        finally:
            if self.closed:  # meanwhile
                self._clear()
        return path

    def remove(self, number: int) -> None:
        """Make room; a process that has the shard mapped keeps it until it opens others."""
        (self.folder / f"{number}.arrow").unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all open shards, and what is still on its way once it comes; nothing more is fetched."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self._clear()

    def prefetch(self, order: Order, position: Position, in_flight: int) -> Iterator[MicroBatch]:
        """The micro-batches of `order`, whose shards a thread fetches before they are read.

        Args:
            position: where the run is.
            in_flight: micro-batches that may be handed out and not yet read.
        """
        shards = (self.shards_of(batch.rows) for batch in order.batches(position))
        prefetch = _Prefetch(self, PrefetchWindow(shards, self.limit), in_flight)
        # A loader asks for the first batch after it has forked its processes: no thread is caught in the fork.
        threading.Thread(target=prefetch.run, name=THREAD_NAME, daemon=True).start()
        try:
            for batch in order.batches(position):
                prefetch.advance()
                yield batch
        finally:
            prefetch.stop()

    def _clear(self) -> None:
        self._mapped.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check_open(self) -> None:
        if self.closed:
            raise RetFoundError("the stream of shards is closed")

    def _row(self, row: int) -> dict[str, Any]:
        number = int(np.searchsorted(self.ends, row, side="right"))
        batches, ends = self._map(number)
        row -= int(self.ends[number]) - self.shards[number].rows
        index = int(np.searchsorted(ends, row, side="right"))
        batch = batches[index]
        offset = row - int(ends[index]) + len(batch)
        return {name: batch.column(name)[offset].as_py() for name in ("image", "id")}

    def _map(self, number: int) -> tuple[list[pa.RecordBatch], np.ndarray]:
        while number not in self._mapped:
            path = self.fetch(number)
            try:
                reader = pa.ipc.open_file(pa.memory_map(str(path)))
            except FileNotFoundError:  # removed between the two
                continue
            batches = [reader.get_batch(index) for index in range(reader.num_record_batches)]
            self._mapped[number] = batches, np.cumsum([len(batch) for batch in batches])
        self._mapped.move_to_end(number)
        if len(self._mapped) > self.limit:
            self._mapped.popitem(last=False)
        return self._mapped[number]


def _to_arrow(parquet: Path, target: Path, shard: StreamShard) -> None:
    """Convert parquet, which is read by row groups, to an Arrow file, which is read by rows."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), ("id", pa.string())])
    columns = ["image", *(["id"] if "id" in pq.read_schema(parquet).names else [])]
    with atomic_file(target) as partial, pa.ipc.new_file(str(partial), schema) as writer:
        row = 0
        # Without threads, which do not survive the fork of a loader's process.
        for batch in bounded_batches(parquet, columns, threads=False):
            numbered = pa.array([f"{shard.name}/{row + index}" for index in range(len(batch))], pa.string())
            ids = batch.column("id").cast(pa.string()) if "id" in columns else numbered
            cells = batch.column("image").cast(image)
            if cells.field("bytes").null_count:
                cells = pa.array([with_place(cell, shard.roots) for cell in cells.to_pylist()], image)
            writer.write_batch(pa.record_batch([cells, ids], schema=schema))
            row += len(batch)
        if row != shard.rows:  # the file was replaced during the run
            raise pa.ArrowInvalid(f"{row} images instead of {shard.rows}")


class _Prefetch:
    """Thread that fetches what the window around the reader needs, one shard after the other.

    Before each it looks where the reader is. So a delayed thread skips what the reader fetched by itself meanwhile,
    and removes nothing that is still being read.
    """

    def __init__(self, table: StreamedTable, window: "PrefetchWindow", in_flight: int):
        self.table, self.window, self.in_flight = table, window, in_flight
        self.stopped = False
        self.handed_out = 0
        self.failed: set[int] = set()

    def advance(self) -> None:
        """The reader took one more micro-batch."""
        with self.table.changed:
            self.handed_out += 1
            self.table.changed.notify_all()

    def stop(self) -> None:
        with self.table.changed:
            self.stopped = True
            self.table.changed.notify_all()

    def run(self) -> None:
        present = self.table.open_shards()
        while (number := self._next(present)) is not None:
            try:
                self.table.fetch(number)
            except Exception as error:  # of the network, the disk: raised again where the images are read
                if not self.table.closed:
                    logger.warning("%s", one_line(error))
                self.failed.add(number)
            present = self.table.open_shards()

    def _next(self, present: set[int]) -> int | None:
        """Wait until a needed shard is missing, and make room for it; None at the end.

        The reader cannot go on between the look at where it is and the removal, and shards that it fetched since
        `present` was listed are not removed.
        """
        with self.table.changed:
            while not (self.stopped or self.table.closed):
                needed = self.window.shards(self.handed_out - self.in_flight, self.handed_out)
                self.failed.intersection_update(needed)
                missing = [number for number in needed if number not in present | self.failed]
                too_many = len(present) + bool(missing) - self.table.limit
                for number in sorted(present.difference(needed))[: max(0, too_many)]:
                    self.table.remove(number)
                    present.discard(number)
                if missing:
                    return missing[0]
                self.table.changed.wait()
        return None


class PrefetchWindow:
    """Micro-batches around the reader: those that may still be read, and as many coming ones as fit.

    Args:
        batches: the shards of each micro-batch of the run.
        limit: shards of all micro-batches in the window, unless those that may still be read have more.
    """

    def __init__(self, batches: Iterator[set[int]], limit: int):
        self.batches, self.limit = batches, limit
        self.inside: deque[set[int]] = deque()
        self.uses: Counter[int] = Counter()  # by shard, in the order of first use
        self.coming = next(batches, None)
        self.number = 0  # of the coming one

    def shards(self, oldest: int, newest: int) -> list[int]:
        """Move on with the reader; the shards inside, in the order in which they are read.

        Args:
            oldest: number of the first micro-batch that may still be read.
            newest: number of the first that was not handed out yet.
        """
        self._drop(oldest)
        while self.coming is not None and (self.number < newest or len(self.uses.keys() | self.coming) <= self.limit):
            self.inside.append(self.coming)
            self.uses.update(sorted(self.coming))
            self.coming = next(self.batches, None)
            self.number += 1
            self._drop(oldest)
        return list(self.uses)

    def _drop(self, oldest: int) -> None:
        while self.inside and self.number - len(self.inside) < oldest:
            for number in self.inside.popleft():
                self.uses[number] -= 1
                if not self.uses[number]:
                    del self.uses[number]


def open_stream(
    data_args: DataArguments, output_dir: Path, shape: dict[str, Any], revisions: Mapping[str, str]
) -> tuple[StreamedTable, StreamedOrder, dict[str, Any]]:
    """Table, order and recorded facts of the stream of `train_data`, the same on all processes.

    Open shards lie in a folder of this run and process, below `cache_dir` or the output folder. What a killed attempt
    at the same output left there is removed, also that of processes which the run no longer has.

    Args:
        shape: arguments of `Order` beside the number of images.
        revisions: commits of data sets that the run started with.
    """
    process, processes = shape["process"], shape["num_processes"]
    listed: list[Any] = [None]
    if process == 0:
        try:
            listed[0] = list_shards(data_args.train_data, revisions, data_args.image_root)
        except RetFoundError as error:
            listed[0] = error
    broadcast_object_list(listed)
    if isinstance(listed[0], RetFoundError):
        raise listed[0]
    shards, fingerprint = listed[0], stream_fingerprint(listed[0])
    root = Path(data_args.cache_dir or output_dir)
    run = hashlib.sha256(str(output_dir.resolve()).encode()).hexdigest()[:HASH_LENGTH]
    for left in root.glob(f".stream-{run}-*"):
        number = int(left.name.split("-")[2])
        if number == process or number >= processes:
            shutil.rmtree(left, ignore_errors=True)
    # The mixed shards, the next ones, and one at the cut between two processes.
    folder, limit = root / f".stream-{run}-{process}-{fingerprint[:HASH_LENGTH]}", 2 * data_args.mixed_shards + 1
    table = StreamedTable(shards, folder, limit)
    rows = tuple(shard.rows for shard in shards)
    order = StreamedOrder(
        len(table) // processes * processes, shard_rows=rows, mixed=data_args.mixed_shards, **shape
    )  # fmt: skip
    facts = {
        "fingerprint": fingerprint,
        "revisions": {shard.source: shard.revision for shard in shards if shard.revision},
        "stream": {"processes": processes, "mixed_shards": data_args.mixed_shards},
    }
    return table, order, facts
