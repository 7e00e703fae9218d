"""Streaming: shards are prefetched while training, and removed when they are done with."""

import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from ..data.image_sources import find_shards
from ..errors import RetFoundError, one_line
from ..files import atomic_file
from ..hub_access import is_connection_error
from .order import MicroBatch, Order, Position

LENGTH = 8  # of the hashes in a folder's name


def place_of(root: Path, output_dir: Path, fingerprint: str, process: int, num_processes: int) -> Path:
    """The folder for the open shards of one process of a run, not made yet.

    What a killed attempt at the same `output_dir` left in `root` is removed: whatever its data were, and also that of
    processes which the run has no more.

    Args:
        root: shared by the runs with one `--cache_dir`.
        fingerprint: of the table.
    """
    run = hashlib.sha256(str(output_dir.resolve()).encode()).hexdigest()[:LENGTH]
    for left in root.glob(f".stream-{run}-*"):
        number = int(left.name.split("-")[2])
        if number == process or number >= num_processes:
            shutil.rmtree(left, ignore_errors=True)
    return root / f".stream-{run}-{process}-{fingerprint[:LENGTH]}"


# Seconds between tries: a run of weeks outlives a network that is gone for minutes.
WAITS = (1, 5, 20, 60, 180)
T = TypeVar("T")


@dataclass(frozen=True)
class StreamShard:
    """A parquet file with a column `image` (`bytes` and `path`) and mostly `id`.

    Attributes:
        source: Hub id of the data set, or an empty string for a file of this machine.
        path: of the file, within the data set or on this machine.
        revision: commit of the data set, so that all of a run and its resumption see the same images.
        rows: images in it.
        member: path of the file within what was given as source, wherever that lies.
        content: what tells its bytes from others.
    """

    source: str
    path: str
    revision: str
    rows: int
    member: str
    content: str

    @property
    def name(self) -> str:
        return f"{self.source}/{self.path}" if self.source else self.path

    def read(
        self, convert: Callable[[Path], T], folder: Path | None = None, check: Callable[[], None] = lambda: None
    ) -> T:
        """What `convert` makes of the file, which is downloaded first if it lies on the Hub, and removed after.

        Args:
            folder: where to download it, if not among the system's temporary files.
            check: called before each try; what it raises ends them.

        Raises:
            RetFoundError: it cannot be had, after several tries.
        """
        check()
        if not self.source:
            return convert(Path(self.path))
        with tempfile.TemporaryDirectory(prefix="retfound-shard-", dir=folder, ignore_cleanup_errors=True) as place:
            return convert(self._download(place, check))

    def _download(self, folder: str, check: Callable[[], None]) -> Path:
        from huggingface_hub import hf_hub_download

        for wait in (*WAITS, None):
            try:
                # Goes on where it was cut off, and checks the size.
                return Path(
                    hf_hub_download(
                        self.source, self.path, repo_type="dataset", revision=self.revision, local_dir=folder
                    )
                )
            except Exception as error:  # of the network, the Hub, the disk
                if wait is None or not _may_pass(error):
                    raise RetFoundError(
                        f"shard {self.name} cannot be fetched ({one_line(error)}); check the network and your access, "
                        "and go on with --resume_from_checkpoint latest"
                    ) from error
            time.sleep(wait)
            check()
        raise AssertionError("the last try returns or raises")


def _may_pass(error: Exception) -> bool:
    """Whether another try may have more luck: a network that is gone, a Hub that is busy."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, LocalEntryNotFoundError) or is_connection_error(error)


READERS = 16  # footers read at once
NEWEST: Mapping[str, str] = MappingProxyType({})


def fingerprint_of(shards: Sequence[StreamShard]) -> str:
    """Tells whether a resumed run sees the same images in the same order, from wherever they come now."""
    told = [(shard.member, shard.rows, shard.content) for shard in shards]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def list_shards(sources: Sequence[str], revisions: Mapping[str, str] = NEWEST) -> list[StreamShard]:
    """All shards of folders, parquet files and Hub data sets, in a fixed order; of each the footer alone is read.

    Args:
        sources: as `--train_data` takes them.
        revisions: commits of Hub data sets; of others the newest is taken.

    Raises:
        RetFoundError: nothing there that is a shard, or no column `image`.
    """
    shards = [shard for source in sources for shard in _list(source, revisions.get(source))]
    filled = [shard for shard in shards if shard.rows]
    if not filled:
        raise RetFoundError(f"--train_data {' '.join(sources)} holds no image; make shards with prepare_images")
    return filled


def _list(source: str, revision: str | None) -> list[StreamShard]:
    path = Path(source)
    if not path.exists():
        return _list_hub(source, revision)
    files = find_shards(path) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    if not files:
        raise RetFoundError(f"--train_data {source} holds no parquet shards; make them with prepare_images")
    root = path if path.is_dir() else path.parent
    return [
        StreamShard(
            "", str(file.absolute()), "", *_look(lambda file=file: open(file, "rb"), source, file.relative_to(root))
        )
        for file in files
    ]


def _list_hub(source: str, revision: str | None) -> list[StreamShard]:
    from huggingface_hub import HfFileSystem

    try:
        # Such as hf://datasets/org/name@0123abc/data/train-00000.parquet, by the data set's own card.
        urls = _train_files(source, revision)
        system = HfFileSystem()
        places = [system.resolve_path(url) for url in urls]
    except Exception as error:  # of the network, the Hub, many readers
        raise RetFoundError(
            f"--train_data {source} is neither here nor a data set that the Hub gives ({one_line(error)}); give a "
            "folder made by prepare_images, or a Hub id that you have access to"
        ) from error
    if not places or not all(place.path_in_repo.endswith(".parquet") for place in places):
        raise RetFoundError(
            f"--train_data {source} has no train split of parquet files, as --streaming needs; make one with "
            "prepare_images, or leave --streaming out"
        )

    def look(url: str, place: Any) -> StreamShard:
        path = place.path_in_repo
        return StreamShard(place.repo_id, path, place.revision, *_look(lambda: system.open(url), source, path))

    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(look, urls, places))


def _train_files(source: str, revision: str | None) -> list[str]:
    import datasets
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        builder = datasets.load_dataset_builder(source, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        if revision is None or not isinstance(error.__cause__, RevisionNotFoundError):
            raise
        # The history was squashed, which leaves the files: the fingerprint tells.
        builder = datasets.load_dataset_builder(source)
    return list((builder.config.data_files or {}).get("train", []))


def _look(open_file: Callable[[], Any], source: str, member: Path | str) -> tuple[int, str, str]:
    """Rows, member and content of a shard."""
    try:
        with open_file() as file:
            footer = pq.ParquetFile(file)
            content = _content(file)
    except Exception as error:  # not parquet, cut off, of the network
        raise RetFoundError(f"--train_data {source} has a shard that cannot be read ({one_line(error)})") from error
    if "image" not in footer.schema_arrow.names:
        names = ", ".join(footer.schema_arrow.names)
        raise RetFoundError(f"--train_data {source} has no column image; its columns are {names}")
    return footer.metadata.num_rows, Path(member).as_posix(), content


def _content(file: Any) -> str:
    """The hash that the Hub lists, or the size and a hash of the footer, which has the sizes of all columns."""
    listed = getattr(file, "details", {})
    if listed.get("lfs"):
        return listed["lfs"]["sha256"]
    if listed.get("blob_id"):
        return listed["blob_id"]
    size = file.seek(0, os.SEEK_END)
    file.seek(size - 8)
    length = int.from_bytes(file.read(4), "little")
    file.seek(size - 8 - length)
    return f"{size}-{hashlib.sha256(file.read(length)).hexdigest()}"


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
        atomic_file(target) as partial,
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


THREAD = "shards ahead"
LOOK = 1.0  # seconds until a waiting thread sees that the table was closed, of which nobody tells it
logger = logging.getLogger(__name__)


class Ahead:
    """The micro-batches of a run, whose shards a thread has fetched by the time they are read.

    Args:
        in_flight: micro-batches that may be handed out and not yet read.
    """

    def __init__(self, table: StreamedTable, order: Order, in_flight: int):
        self.table, self.order, self.in_flight = table, order, in_flight

    def batches(self, position: Position) -> Iterator[MicroBatch]:
        """As `order.batches`; the thread lives as long as the iterator, or until the table is closed."""
        shards = (self.table.shards_of(batch.rows) for batch in self.order.batches(position))
        fetching = _Fetching(self.table, _Window(shards, self.table.limit), self.in_flight)
        # A loader asks for the first batch once its processes are forked: no thread is caught in the fork.
        threading.Thread(target=fetching.run, name=THREAD, daemon=True).start()
        try:
            for batch in self.order.batches(position):
                fetching.advance()
                yield batch
        finally:
            fetching.close()


class _Fetching:
    """A thread that brings what the window around the reader wants, one shard after the other.

    Before each it looks where the reader is. So one that was held up leaves out what the reader fetched by itself
    meanwhile, and removes nothing that is still being read.
    """

    def __init__(self, table: StreamedTable, window: "_Window", in_flight: int):
        self.table, self.window, self.in_flight = table, window, in_flight
        self.changed = threading.Condition()
        self.closed = False
        self.handed_out = 0
        self.given_up: set[int] = set()

    def advance(self) -> None:
        """The reader took one more micro-batch."""
        with self.changed:
            self.handed_out += 1
            self.changed.notify()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()

    def run(self) -> None:
        here = self.table.present()
        while (number := self._next(here)) is not None:
            try:
                self.table.fetch(number)
            except Exception as error:  # of the network, the disk: said again, and fatal, where the images are read
                if not self.table.closed:
                    logger.warning("%s", one_line(error))
                self.given_up.add(number)
            here = self.table.present()

    def _next(self, here: set[int]) -> int | None:
        """Wait until a shard is wanted that is not here, and make room for it; None at the end.

        The reader cannot go on between the look at where it is and the removal, and what it fetched since `here` was
        listed is not removed.
        """
        with self.changed:
            while not (self.closed or self.table.closed):
                wanted = self.window.shards(self.handed_out - self.in_flight, self.handed_out)
                self.given_up.intersection_update(wanted)
                missing = [number for number in wanted if number not in here | self.given_up]
                too_many = len(here) + bool(missing) - self.table.limit
                for number in sorted(here.difference(wanted))[: max(0, too_many)]:
                    self.table.remove(number)
                    here.discard(number)
                if missing:
                    return missing[0]
                self.changed.wait(LOOK)
        return None


class _Window:
    """The micro-batches around the reader: those that may still be read, and as many to come as fit.

    Args:
        batches: of each micro-batch of the run its shards.
        limit: shards of all micro-batches in the window, unless those that may still be read have more.
    """

    def __init__(self, batches: Iterator[set[int]], limit: int):
        self.batches, self.limit = batches, limit
        self.inside: deque[set[int]] = deque()
        self.uses: Counter[int] = Counter()  # by shard, in the order in which they come first
        self.coming = next(batches, None)
        self.number = 0  # of the one that comes

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
