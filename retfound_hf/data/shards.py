"""Parquet shards of prepared images: workers, writing, completion records, and the run over all units."""

import hashlib
import json
import multiprocessing
import os
import posixpath
import shutil
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from itertools import groupby
from multiprocessing import forkserver
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from tqdm import tqdm

from ..errors import RetFoundError
from ..files import atomic_file, refuse_existing, write_json
from ..images.field_of_view import crop_field_of_view, side_to_read
from ..images.geometry import resize
from ..images.reading import IMAGE_SUFFIXES, UnreadableImageError, read_image
from .image_sources import Item, Source, Unit, cut_units, identity

BLANK_RANGE = 8  # of 255 gray levels, from the 1st to the 99th percentile


class Prepared(NamedTuple):
    """A prepared image, or the reason why there is none.

    `hash` is the BLAKE2b digest (128 bits, hex) of the prepared pixels before they are encoded.
    """

    image: bytes = b""
    hash: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Preparer:
    """Reads, crops, resizes and encodes one image; no metadata of the original is kept.

    Attributes:
        size: side of the square result in pixels.
        crop: cut to the field of view (colour fundus photographs).
        min_side: images with a shorter side of fewer pixels are rejected.
        format: JPEG keeps full colour resolution (4:4:4): the red of vessels and haemorrhages on orange is colour
            contrast, and halving it costs 4-7 dB in the red channel (JPEG 95 at 256 pixels), a fifth of the bytes.
        quality: of JPEG.
    """

    size: int
    crop: bool
    min_side: int
    format: Literal["jpeg", "png"] = "jpeg"
    quality: int = 95

    def __call__(self, source: str | bytes) -> Prepared:
        """Never raises for an image, whatever is wrong with it."""
        try:
            image = self.prepare(source)
        except UnreadableImageError as error:
            name = source if isinstance(source, str) else "the image"
            return Prepared(reason=str(error).removeprefix(f"cannot read {name}: "))
        return self._encoded(image)

    def prepare(self, source: str | bytes) -> Image.Image:
        """The prepared image, 8-bit RGB of `size` x `size`.

        Raises:
            UnreadableImageError: no image, or too small a one, or a blank one.
        """
        # Of a JPEG, no more is decoded than leaves the smallest field that the crop accepts, 0.4 of the photograph's
        # shorter side, as large as the result: it differs less from full decoding than JPEG at quality 95 does.
        image = read_image(source, min_side=max(side_to_read(self.size), self.min_side))
        if min(image.size) < self.min_side:
            raise UnreadableImageError(f"{image.width} x {image.height} pixels are fewer than {self.min_side} a side")
        if self.crop:
            image = crop_field_of_view(image)
        image = resize(image, {"height": self.size, "width": self.size})
        low, high = np.percentile(np.asarray(image.convert("L")), (1, 99))
        if high - low < BLANK_RANGE:
            raise UnreadableImageError(f"it is blank: its gray levels span {high - low:.0f} of 255")
        return image

    def _encoded(self, image: Image.Image) -> Prepared:
        encoded = BytesIO()
        if self.format == "jpeg":
            image.save(encoded, "JPEG", quality=self.quality, subsampling="4:4:4")
        else:
            image.save(encoded, "PNG", compress_level=1)
        return Prepared(encoded.getvalue(), hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest())


class Job(NamedTuple):
    """What a worker is started with: how to get at an image, and what to do with it."""

    opener: Callable[[Any], str | bytes]
    preparer: Preparer

    def __call__(self, ref: Any) -> Prepared:
        try:
            return self.preparer(self.opener(ref))
        except Exception as error:  # one image must not end the work on a million
            return Prepared(reason=f"it cannot be prepared ({' '.join(str(error).split()) or type(error).__name__})")


_jobs: list[Job] = []


def start_worker(job: Job) -> None:
    """Make this process ready: one thread, deaf to Ctrl-C (its parent ends it), gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of Pillow about damaged metadata, which is dropped anyway
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _jobs[:] = [job]


def run_chunk(refs: Sequence[Any]) -> list[Prepared]:
    """Do the job on some images."""
    return [_jobs[0](ref) for ref in refs]


def _end_with_parent() -> None:
    # A killed parent says nothing to its workers, which would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


if TYPE_CHECKING:
    import datasets

ROW_GROUP = 100  # images: what a streaming reader fetches at once, some 2 MB
SUFFIXES = {"jpeg": ".jpg", "png": ".png"}


def shard_features(kept: Mapping[str, Any]) -> "datasets.Features":
    """Features of the shards: `image`, `id`, `hash` and the carried columns."""
    import datasets

    text = datasets.Value("string")
    return datasets.Features({"image": datasets.Image(), "id": text, "hash": text, **kept})


class Shard:
    """A shard in the making; rows go to disk as soon as they fill a row group."""

    def __init__(self, path: Path, schema: pa.Schema, image_format: str, stack: ExitStack):
        self.path = path
        self.rows = 0
        self.image_bytes = 0
        self._schema = schema
        self._suffix = SUFFIXES[image_format]
        self._stack = stack
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[tuple[Any, ...]] = []

    def add(self, item: Item, prepared: Prepared) -> None:
        """Append one image."""
        image = {"bytes": prepared.image, "path": file_name(item.id) + self._suffix}
        self._pending.append((image, item.id, prepared.hash, *item.kept))
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
    """A shard that appears at `path` when the `with` ends well and has rows; an old one there is replaced or removed.

    Args:
        schema: of `shard_features(...).arrow_schema`, which carries the features as metadata.
    """
    for leftover in path.parent.glob(f".{path.stem}-*{path.suffix}"):  # of a run that was killed
        leftover.unlink(missing_ok=True)
    with ExitStack() as stack:
        shard = Shard(path, schema, image_format, stack)
        yield shard
        shard.flush()
    if not shard.rows:
        path.unlink(missing_ok=True)


def file_name(name: str) -> str:
    """The last part of an id, without the suffix of an image file."""
    stem, suffix = os.path.splitext(posixpath.basename(name))
    return stem if suffix.lower() in IMAGE_SUFFIXES else stem + suffix


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


Task = TypeVar("Task")
IN_FLIGHT = 4  # chunks for each worker
KILLED = "it ended the process that read it (the decoder crashed, or memory ran out)"


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that prepare images; to be used in a `with`.

    They are forked from a server that has imported the package once: a worker of its own import takes seconds and
    hundreds of megabytes, and one forked from this process could inherit a lock that nobody will release.
    """

    def __init__(self, num_workers: int, job: Job):
        self.num_workers = num_workers
        self.job = job
        has_server = "forkserver" in multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if has_server else "spawn")
        if has_server:
            _start_server(self._context)
        self._pool = self._new_pool(num_workers)
        self._lone: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._pool, self._lone):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def ordered(self, tasks: Iterable[tuple[Task, Sequence[Any]]]) -> Iterator[tuple[Task, list[Prepared]]]:
        """The results of `(task, refs)` pairs in their order; the pairs are taken as there is room for them.

        Raises:
            RetFoundError: no worker process can be kept alive even without an image.
        """
        tasks = iter(tasks)
        waiting: deque[tuple[Task, Sequence[Any], Future]] = deque()
        while True:
            while len(waiting) < IN_FLIGHT * self.num_workers and (pair := next(tasks, None)) is not None:
                waiting.append((*pair, self._submit(pair[1])))
            if not waiting:
                return
            try:
                results = waiting[0][2].result()
            except BrokenProcessPool:
                self._rescue(waiting)
                continue
            yield waiting.popleft()[0], results

    def _new_pool(self, num_workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(num_workers, self._context, start_worker, (self.job,))

    def _submit(self, refs: Sequence[Any]) -> Future:
        try:
            with _interrupt_deferred():
                return self._pool.submit(run_chunk, refs)
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
                "worker processes end as soon as they start; check the memory that is free, and --num_workers"
            ) from error
        for place, (task, refs, future) in enumerate(waiting):
            if future.cancelled() or future.exception() is not None:
                done: Future = Future()
                done.set_result(self._survivors(refs))
                waiting[place] = task, refs, done
        self._pool = self._new_pool(self.num_workers)

    def _survivors(self, refs: Sequence[Any]) -> list[Prepared]:
        """Results of a suspect chunk, in which an image that kills a process of its own is rejected."""
        try:
            return self._alone(refs)
        except BrokenProcessPool:
            if len(refs) == 1:
                return [Prepared(reason=KILLED)]
        return [result for ref in refs for result in self._survivors([ref])]

    def _alone(self, refs: Sequence[Any]) -> list[Prepared]:
        if self._lone is None:
            self._lone = self._new_pool(1)
        try:
            with _interrupt_deferred():
                future = self._lone.submit(run_chunk, refs)
            return future.result()
        except BrokenProcessPool:
            self._lone.shutdown()
            self._lone = None
            raise


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Let Ctrl-C wait: a process that is half started when its parent leaves ends in a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def _start_server(context: multiprocessing.context.BaseContext) -> None:
    context.set_forkserver_preload([__name__])
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()
        return
    # It inherits this, so that Ctrl-C during its imports brings no traceback.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


CHUNK = 8  # images that go to a worker at once


@dataclass(frozen=True)
class Part:
    """The units whose index leaves `number - 1` when divided by `count`: the share of one machine of several."""

    number: int = 1
    count: int = 1

    def owns(self, unit: int) -> bool:
        return unit % self.count == self.number - 1

    def images(self, total: int, unit_size: int) -> int:
        """How many of `total` images are in these units."""
        units, rest = divmod(total, unit_size)
        return len(range(self.number - 1, units, self.count)) * unit_size + rest * self.owns(units)


@dataclass(frozen=True)
class Chunk:
    """Some images of a unit, and the identity of the whole of it."""

    unit: Unit
    identity: str
    items: list[Item] = field(repr=False)


def make_shards(source: Source, records: Records, preparer: Preparer, part: Part, num_workers: int) -> int:
    """Write the shards of `part` that are not there yet, each followed by its record.

    Args:
        records: of the output folder, opened; its options hold `modality`, `shard_size` and `image_format`.

    Returns:
        How many images were read; those of shards that were there already are not.

    Raises:
        RetFoundError: the folder holds shards of another source, or no worker process can be kept alive.
    """
    options = records.options
    schema = shard_features(source.kept_features).arrow_schema
    total = part.images(len(source), options["shard_size"])
    progress = tqdm(total=total, desc=f"Preparing {options['modality'].upper()}", unit="image")
    read = 0
    with progress, Workers(num_workers, Job(source.opener(), preparer)) as workers:
        chunks = _unfinished(source, records, part, progress)
        results = workers.ordered((chunk, [item.ref for item in chunk.items]) for chunk in chunks)
        for index, of_unit in groupby(results, key=lambda result: result[0].unit.index):
            rejected: list[tuple[str, str]] = []
            with open_shard(records.shard(index), schema, options["image_format"]) as shard:
                for chunk, prepared in of_unit:
                    for item, image in zip(chunk.items, prepared, strict=True):
                        if image.reason:
                            rejected.append((item.id, image.reason))
                        else:
                            shard.add(item, image)
                    progress.update(len(chunk.items))
            images = len(chunk.unit.items)
            records.write(
                Record(
                    unit=index,
                    identity=chunk.identity,
                    source=records.source,
                    options=options,
                    images=images,
                    written=shard.rows,
                    image_bytes=shard.image_bytes,
                    shard_bytes=shard.path.stat().st_size if shard.rows else 0,
                    rejected=rejected,
                )
            )
            read += images
    units = -(-len(source) // options["shard_size"])
    for record in records:  # left of a time when the source was larger
        if record.unit >= units and part.owns(record.unit):
            records.remove(record.unit)
    return read


def _unfinished(source: Source, records: Records, part: Part, progress: tqdm) -> Iterator[Chunk]:
    for unit in cut_units(source, records.options["shard_size"]):
        if not part.owns(unit.index):
            continue
        digest = identity(source, unit)
        if records.is_done(unit.index, digest):
            progress.update(len(unit.items))
            continue
        for start in range(0, len(unit.items), CHUNK):
            yield Chunk(unit, digest, unit.items[start : start + CHUNK])
