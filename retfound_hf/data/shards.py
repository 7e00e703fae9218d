"""Parquet shards of prepared images: worker processes, writing, and the completion record of each shard."""

import json
import posixpath
import shutil
import signal
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..cluster import Share
from ..errors import OutputError, RetFoundError, UnreadableImageError, one_line
from ..files import atomic_file, refuse_existing, write_json
from ..processes import clean_start, deferred_interrupt, exit_with_parent, worker_context
from .image_cache import Prepared, Preparer
from .image_sources import ImageRef, ImageSource, Part, ShardPart
from .tables import stem

if TYPE_CHECKING:
    import datasets

ROW_GROUP = 100  # images: what a streaming reader fetches at once, some 2 MB
SUFFIXES = {"jpeg": ".jpg", "png": ".png"}
RECORDS = ".prepared"
SUMMARY_FILES = ("README.md", "dataset_info.json", "rejected.csv", "duplicates.csv", "run.json")
CHUNK = 8  # images that go to a worker at once
IN_FLIGHT = 4  # chunks for each worker
MAX_SECONDS = 120  # of a worker for one image
KILLED = "it ended the process that read it (the decoder crashed, memory ran out, or it took minutes)"
Task = TypeVar("Task")


class Job(NamedTuple):
    """Work of a worker process: how to open an image, how to prepare it, and the seconds that both may take."""

    opener: Callable[[Any], str | bytes]
    preparer: Preparer
    seconds: int = MAX_SECONDS

    def __call__(self, image: Any) -> Prepared:
        try:
            return self.preparer(self.opener(image))
        except UnreadableImageError as error:
            return Prepared(reason=error.reason)
        except Exception as error:  # one image must not end the work on a million
            return Prepared(reason=f"it cannot be prepared ({one_line(error)})")


_jobs: list[Job] = []


def _start_worker(job: Job) -> None:
    """Initialise a worker: one thread, deaf to Ctrl-C (its parent ends it), gone when its parent is."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of Pillow about damaged metadata, which is dropped anyway
    exit_with_parent()
    _jobs[:] = [job]


def _run_chunk(images: Sequence[Any]) -> list[Prepared]:
    results = []
    for image in images:
        signal.alarm(_jobs[0].seconds)  # ends this process, also within a decoder
        results.append(_jobs[0](image))
    signal.alarm(0)
    return results


class Workers:
    """Pool of processes that prepare images: results in order, and an image that kills its process is rejected alone.

    To be used in a `with`. joblib and `concurrent.futures` give up all that is in flight when a worker dies.
    """

    def __init__(self, num_workers: int, job: Job):
        self.num_workers = num_workers
        self.job = job
        self._context = worker_context(__name__)
        self._pool = self._new_pool(num_workers)
        self._lone: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._pool, self._lone):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def ordered(self, tasks: Iterable[tuple[Task, Sequence[Any]]]) -> Iterator[tuple[Task, list[Prepared]]]:
        """Results of `(task, images)` pairs in their order; the pairs are taken as there is room for them.

        Raises:
            RetFoundError: no worker process can be kept alive even without an image.
        """
        tasks = iter(tasks)
        waiting: deque[tuple[Task, Sequence[Any], Future]] = deque()
        while True:
            while len(waiting) < IN_FLIGHT * self.num_workers and (pair := next(tasks, None)) is not None:
                waiting.append((*pair, self._submit(self._pool, pair[1])))
            if not waiting:
                return
            try:
                results = waiting[0][2].result()
            except BrokenProcessPool:
                self._rescue(waiting)
                continue
            yield waiting.popleft()[0], results

    def _new_pool(self, num_workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(num_workers, self._context, _start_worker, (self.job,))

    @staticmethod
    def _submit(pool: ProcessPoolExecutor, images: Sequence[Any]) -> Future:
        try:
            with deferred_interrupt(), clean_start():  # it may start a process
                return pool.submit(_run_chunk, images)
        except BrokenProcessPool as error:
            failed: Future = Future()
            failed.set_exception(error)
            return failed

    def _rescue(self, waiting: deque[tuple[Task, Sequence[Any], Future]]) -> None:
        """Do again, one by one, what a dead worker took down with it; all that was in flight is suspect."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        try:
            self._alone([])
        except BrokenProcessPool as error:
            raise RetFoundError(
                "worker processes end as soon as they start; check the memory that is free, and `num_workers`"
            ) from error
        for place, (task, images, future) in enumerate(waiting):
            if future.cancelled() or future.exception() is not None:
                done: Future = Future()
                done.set_result(self._survivors(images))
                waiting[place] = task, images, done
        self._pool = self._new_pool(self.num_workers)

    def _survivors(self, images: Sequence[Any]) -> list[Prepared]:
        """Results of a suspect chunk, in which an image that kills a process of its own is rejected."""
        try:
            return self._alone(images)
        except BrokenProcessPool:
            if len(images) == 1:
                return [Prepared(reason=KILLED)]
        return [result for image in images for result in self._survivors([image])]

    def _alone(self, images: Sequence[Any]) -> list[Prepared]:
        self._lone = self._lone or self._new_pool(1)
        try:
            return self._submit(self._lone, images).result()
        except BrokenProcessPool:
            self._lone.shutdown()
            self._lone = None
            raise


def shard_features(kept: Mapping[str, Any]) -> "datasets.Features":
    """Features of the shards: `image`, `id`, `hash` and the carried columns."""
    import datasets

    text = datasets.Value("string")
    return datasets.Features({"image": datasets.Image(), "id": text, "hash": text, **kept})


class Shard:
    """Shard that is being written; rows go to disk as soon as they fill a row group."""

    def __init__(self, path: Path, schema: pa.Schema, image_format: str, stack: ExitStack):
        self.path = path
        self.rows = 0
        self.image_bytes = 0
        self._schema = schema
        self._suffix = SUFFIXES[image_format]
        self._stack = stack
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[tuple[Any, ...]] = []

    def add(self, ref: ImageRef, prepared: Prepared) -> None:
        """Append one image."""
        image = {"bytes": prepared.image, "path": stem(posixpath.basename(ref.id)) + self._suffix}
        self._pending.append((image, ref.id, prepared.hash, *ref.facts.values()))
        self.rows += 1
        self.image_bytes += len(prepared.image)
        if len(self._pending) == ROW_GROUP:
            self.flush()

    def flush(self) -> None:
        """Write what is pending; a shard without rows never becomes a file."""
        if not self._pending:
            return
        if self._writer is None:
            partial = self._stack.enter_context(atomic_file(self.path))
            self._writer = self._stack.enter_context(pq.ParquetWriter(partial, self._schema))
        columns = zip(self._schema, zip(*self._pending, strict=True), strict=True)
        arrays = [pa.array(values, field.type) for field, values in columns]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))
        self._pending.clear()


@contextmanager
def open_shard(path: Path, schema: pa.Schema, image_format: str) -> Iterator[Shard]:
    """Shard that appears at `path` when the `with` ends well and has rows; an old one there is replaced or removed.

    Args:
        path: parquet file.
        schema: of `shard_features(...).arrow_schema`, which carries the features as metadata.
        image_format: key of `SUFFIXES`.
    """
    for leftover in path.parent.glob(f".{path.stem}-*{path.suffix}"):  # of a run that was killed
        leftover.unlink(missing_ok=True)
    with ExitStack() as stack:
        shard = Shard(path, schema, image_format, stack)
        yield shard
        shard.flush()
    if not shard.rows:
        path.unlink(missing_ok=True)


def number_images(path: Path, copy: Path) -> int:
    """Copy a shard with numbers in place of its images' names, in `id` and in their paths; return the rows."""
    shard, rows = pq.ParquetFile(path), 0
    with atomic_file(copy) as partial, pq.ParquetWriter(partial, shard.schema_arrow) as writer:
        for group in range(shard.num_row_groups):
            table = shard.read_row_group(group)
            images = table["image"].combine_chunks()
            ids = [f"{path.stem.removeprefix('train-')}-{rows + row:06d}" for row in range(len(table))]
            paths = [
                f"{name}{Path(old).suffix}" for name, old in zip(ids, images.field("path").to_pylist(), strict=True)
            ]
            parts = {"bytes": images.field("bytes"), "path": pa.array(paths, pa.string())}
            fields = [images.type.field(index) for index in range(images.type.num_fields)]
            numbered = pa.StructArray.from_arrays([parts[field.name] for field in fields], fields=fields)
            for column, values in (("image", numbered), ("id", pa.array(ids, pa.string()))):
                place = table.schema.get_field_index(column)
                table = table.set_column(place, table.schema.field(column), values)
            writer.write_table(table)
            rows += len(table)
    return rows


@dataclass(frozen=True)
class Record:
    """Completion record of a shard.

    Attributes:
        unit: number of the shard.
        identity: see `image_sources.Part`.
        source: the source's name, for the error where another one is put into the same folder.
        options: what the shard depends on beside its images, the version of the crop rule included.
        images: of the source; `written` of them are in the shard.
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
    """Completion records in an output folder, used to resume runs and to merge parallel parts.

    Args:
        out: output folder.
        source: name of the source.
        options: of this run; records made with others are refused.
    """

    def __init__(self, out: Path, source: str, options: dict[str, Any]):
        self.out = out
        self.source = source
        self.options = json.loads(json.dumps(options))  # as they come back from a file
        self._folder = out / RECORDS

    def open(self, overwrite: bool) -> None:
        """Make the folder ready for this run.

        Raises:
            OutputError: it holds something else, or shards made with other options, and `overwrite` is false.
        """
        if not self._folder.is_dir():
            refuse_existing(self.out, overwrite)
        if overwrite:
            # Records first: a shard without one is made anew.
            shutil.rmtree(self._folder, ignore_errors=True)
            for path in [*self.out.glob("data/train-*.parquet"), *(self.out / name for name in SUMMARY_FILES)]:
                path.unlink(missing_ok=True)
        for record in self:
            for name in sorted(self.options.keys() | record.options.keys()):
                old, new = record.options.get(name), self.options.get(name)
                if old != new:
                    raise OutputError(
                        f"{self.out} holds shards made with `{name}={old}`, not {new}; give the same "
                        "options or another folder, or begin anew with `overwrite_output_dir`",
                        path=self.out,
                    )
        self._folder.mkdir(parents=True, exist_ok=True)

    def __iter__(self) -> Iterator[Record]:
        """All records, by number."""
        for path in sorted(self._folder.glob("[0-9]*.json"), key=lambda path: int(path.stem)):
            if (record := self._read(path)) is not None:
                yield record

    def is_done(self, part: Part | ShardPart) -> bool:
        """Whether the shard of a part is there and its images have not changed.

        Raises:
            OutputError: the shard is of another source.
        """
        record = self._read(self._path(part.index))
        if record is None:
            return False
        if record.identity != part.identity:
            if record.source != self.source:
                raise OutputError(
                    f"{self.out} holds shards of {record.source}, not of {self.source}; choose another folder, or "
                    "begin anew with `overwrite_output_dir`",
                    path=self.out,
                )
            return False
        shard = self.shard(part.index)
        return (shard.stat().st_size if shard.is_file() else 0) == record.shard_bytes

    def write(self, record: Record) -> None:
        write_json(self._path(record.unit), asdict(record))

    def remove_beyond(self, source: ImageSource, share: Share) -> None:
        """Remove the shards of `share` that are left of a time when the source was larger."""
        units = -(-len(source) // self.options["shard_size"])
        for record in self:
            if record.unit >= units and share.owns(record.unit):
                self._path(record.unit).unlink(missing_ok=True)
                self.shard(record.unit).unlink(missing_ok=True)

    def check_whole(self, source: ImageSource) -> None:
        """Raise `OutputError` unless the shards, with what was rejected, hold every image of the source once."""
        strays = {*self.out.glob("data/train-*.parquet")} - {self.shard(each.unit) for each in self if each.written}
        if strays:
            message = f"{min(strays)} is no shard of {self.source}, whose images would come twice; remove it"
            raise OutputError(message, path=min(strays))
        for part in source.parts(self.options["shard_size"]):
            record, path = self._read(self._path(part.index)), self.shard(part.index)
            held = Counter(name for name, _ in record.rejected) if record is not None else Counter()
            if record is not None and record.written:
                held.update(pq.read_table(path, columns=["id"])["id"].to_pylist())
            wanted = Counter(ref.id for ref in part.refs)
            if wrong := [name for name in wanted | held if wanted[name] != held[name]]:
                raise OutputError(
                    f"{path} lacks images of {self.source} or holds them twice, such as {wrong[0]}; remove it and "
                    "start the same command again", path=path,
                )  # fmt: skip

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


def make_shards(source: ImageSource, records: Records, preparer: Preparer, share: Share, num_workers: int) -> int:
    """Write the shards of `share` that are not there yet, each followed by its record.

    Args:
        source: of the images.
        records: of the output folder, opened; its options hold `modality`, `shard_size` and `image_format`.
        preparer: for each image.
        share: of this machine.
        num_workers: processes.

    Returns:
        How many images were read; those of shards that were there already are not.

    Raises:
        RetFoundError: the folder holds shards of another source, or no worker process can be kept alive.
    """
    options = records.options
    schema = shard_features(source.features).arrow_schema
    full, rest = divmod(len(source), options["shard_size"])
    total = len(share.of(range(full))) * options["shard_size"] + rest * share.owns(full)
    progress = tqdm(total=total, desc=f"Preparing {options['modality'].upper()}", unit="image")
    read = 0
    with progress, Workers(num_workers, Job(source.opener(), preparer)) as workers:
        chunks = _unfinished(source, records, share, progress)
        results = workers.ordered((chunk, [ref.image for ref in chunk[1]]) for chunk in chunks)
        for index, of_part in groupby(results, key=lambda result: result[0][0].index):
            rejected: list[tuple[str, str]] = []
            with open_shard(records.shard(index), schema, options["image_format"]) as shard:
                for (part, refs), prepared in of_part:  # noqa: B007
                    for ref, image in zip(refs, prepared, strict=True):
                        if image.reason:
                            rejected.append((ref.id, image.reason))
                        else:
                            shard.add(ref, image)
                    progress.update(len(refs))
            size = shard.path.stat().st_size if shard.rows else 0
            facts = (len(part.refs), shard.rows, shard.image_bytes, size, rejected)
            records.write(Record(index, part.identity, records.source, options, *facts))
            read += len(part.refs)
    records.remove_beyond(source, share)
    return read


def _unfinished(
    source: ImageSource, records: Records, share: Share, progress: tqdm
) -> Iterator[tuple[Part | ShardPart, Sequence[ImageRef]]]:
    for part in source.parts(records.options["shard_size"]):
        if not share.owns(part.index):
            continue
        if records.is_done(part):
            progress.update(len(part.refs))
            continue
        for start in range(0, len(part.refs), CHUNK):
            yield part, part.refs[start : start + CHUNK]
