"""Images of pretraining: their order, and the loader that decodes them to uint8 batches with random numbers."""

import atexit
import hashlib
import multiprocessing
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..data.parquet import check_conversion, converted, encoded_bytes, find_shards, roots_of, with_place
from ..data.remote import list_remote
from ..errors import BadArgumentError, BadDataError, RetFoundError, UnreadableImageError, one_line
from ..files import is_remote
from ..hub_access import look_up_data_set
from ..images.bounds import check_pixels
from ..images.reading import open_image, read_image, to_tensor
from ..processes import exit_with_parent
from .arguments import DataArguments, PretrainingArguments
from .objectives.base import Draw
from .stream_shards import no_image_column, no_shards

if TYPE_CHECKING:
    import datasets

    from .streaming import StreamedTable

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"
SAMPLED_ROWS = 1024  # that a fingerprint reads
PREFETCHED_BATCHES = 4  # of each loader process


@dataclass(frozen=True)
class Position:
    """Position of a run in its images.

    Attributes:
        step: optimiser steps done.
        epoch: epochs finished.
        offset: images of the started epoch that were used.
    """

    step: int = 0
    epoch: int = 0
    offset: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """The images of one forward pass on one process.

    Attributes:
        rows: of the table.
        step: optimiser step that they belong to.
        start: index of the first of them among the images of that step on all processes.
    """

    rows: tuple[int, ...]
    step: int
    start: int


@dataclass(frozen=True)
class Order:
    """The images of a run, step by step, the same for any number of processes.

    An epoch is a permutation of all images, cut into global batches; the last, incomplete one is left out, as in the
    MAE code. Forward pass a of process r takes the B images of a global batch from (a * processes + r) * B on.

    Args:
        num_images: in the table.
        batch_size: B, images per process and forward pass.
        accumulation: forward passes per step.
        num_processes, process: how many, and which this is.
        seed: of the permutations.
        max_steps: end of the run in steps; if not above 0, it ends after `num_epochs`.
    """

    num_images: int
    batch_size: int
    accumulation: int = 1
    num_processes: int = 1
    process: int = 0
    seed: int = 0
    max_steps: int = -1
    num_epochs: float = 1.0

    @property
    def global_batch(self) -> int:
        """Images per optimiser step."""
        return self.batch_size * self.accumulation * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.global_batch

    @property
    def total_steps(self) -> int:
        return self.max_steps if self.max_steps > 0 else max(1, round(self.num_epochs * self.steps_per_epoch))

    def epochs(self, position: Position) -> float:
        """Epochs done, with the started one's share."""
        return position.epoch + position.offset / (self.steps_per_epoch * self.global_batch)

    def progress(self, position: Position) -> float:
        """Finished share of the run, from 0 to 1.

        Counted in epochs where the run has epochs, so that a run that goes on with another batch keeps its schedule.
        """
        done = position.step / self.max_steps if self.max_steps > 0 else self.epochs(position) / self.num_epochs
        return min(done, 1.0)

    def is_finished(self, position: Position) -> bool:
        """Whether the run has ended, up to half a step: the share of an epoch is a rounded number."""
        return self.progress(position) > 1 - 0.5 / self.total_steps

    def after(self, position: Position) -> Position:
        """The position one step later."""
        position = replace(position, step=position.step + 1, offset=position.offset + self.global_batch)
        return self.at_epoch(position)

    def batches(self, position: Position) -> Iterator[MicroBatch]:
        """Micro-batches of this process from `position` to the end of the run; earlier ones are not visited."""
        position = self.at_epoch(position)
        epoch, rows = -1, np.empty(0, np.int64)
        while not self.is_finished(position):
            if position.epoch != epoch:
                epoch, rows = position.epoch, self._rows(position.epoch)
            for number in range(self.accumulation):
                start = (number * self.num_processes + self.process) * self.batch_size
                first = self._start(position.offset, number)
                yield MicroBatch(tuple(rows[first : first + self.batch_size].tolist()), position.step, start)
            position = self.after(position)

    def at_epoch(self, position: Position) -> Position:
        """The same position, or the start of the next epoch where too few images are left for a step."""
        if self.num_images - position.offset < self.global_batch:
            return replace(position, epoch=position.epoch + 1, offset=0)
        return position

    def _rows(self, epoch: int) -> np.ndarray:
        """Rows of an epoch; a micro-batch of this process begins at `_start`."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_images)

    def _start(self, offset: int, number: int) -> int:
        return offset + (number * self.num_processes + self.process) * self.batch_size


def step_generator(seed: int, step: int) -> torch.Generator:
    """Generator of the random numbers of an optimiser step, independent of all others and of the order's."""
    state = np.random.SeedSequence([seed, step, 1]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


def decode(encoded: bytes) -> Tensor:
    """Encoded image -> uint8 (3, height, width), turned upright.

    Only JPEG goes through torchvision, which saves a quarter of the time; its other decoders do not survive every
    damaged file. The pixels are the same but for roundings of colour.

    Raises:
        UnreadableImageError: damaged, cut off or too large.
    """
    # torchvision fills missing parts of a JPEG with gray and says so on the console only; Pillow refuses it.
    if encoded[:2] == JPEG_START and JPEG_END in encoded[-64:]:
        with suppress(ImportError, RuntimeError, ValueError, OSError, Image.DecompressionBombError):
            from torchvision.io import ImageReadMode, decode_jpeg  # which later versions may lack

            # torchvision takes the memory and time that the file asks for.
            with open_image(encoded) as image:
                check_pixels(*image.size)
            data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
            return decode_jpeg(data, ImageReadMode.RGB, apply_exif_orientation=True)
    return to_tensor(read_image(encoded))


def open_shards(
    sources: Sequence[str], cache_dir: str | None = None, image_root: str | None = None
) -> "datasets.Dataset":
    """All shards as one memory-mapped table with the columns `image` (encoded) and `id`.

    `datasets` converts parquet files into its cache once; later runs map that.

    Args:
        sources: folders with parquet files in them, parquet files, either of them here or in an object store, or Hub
            ids; what is not here is fetched.
        cache_dir: of `datasets`.
        image_root: see `roots_of`.

    Raises:
        BadDataError: nothing there, no column `image`, or files that do not belong to the data.
    """
    import datasets

    tables = []
    for source in sources:
        path, remote = Path(source), is_remote(source)
        files = [str(shard) for shard in find_shards(path)] if path.is_dir() else [source]
        if remote:
            folder, members = list_remote(source, "train_data")
            files = [f"{folder}/{member}" for member in members]
        if (path.exists() or remote) and not (files and files[0].endswith(".parquet")):
            raise no_shards(source)
        try:
            if path.exists() or remote:
                table = converted(files, cache_dir)
            else:
                look_up_data_set(source)
                check_conversion(datasets.load_dataset_builder(source, cache_dir=cache_dir))
                table = datasets.load_dataset(source, split="train", cache_dir=cache_dir)
            if "image" not in table.column_names:
                raise no_image_column(source, table.column_names)
            table = table.cast_column("image", datasets.Image(decode=False))
            bare = pc.is_null(pc.struct_field(table.with_format("arrow")[:]["image"], "bytes"))
            if pc.any(bare).as_py():
                roots = roots_of(source, image_root)
                table = table.map(
                    lambda row, roots: {"image": with_place(row["image"], roots)}, fn_kwargs={"roots": roots}
                )
            if "id" not in table.column_names:
                table = table.add_column("id", [f"{source}/{row}" for row in range(len(table))])
            tables.append(table.select_columns(["image", "id"]).cast_column("id", datasets.Value("string")))
        except BadDataError:
            raise
        except Exception as error:  # loading runs through many readers, each with its own errors
            raise BadDataError(
                f"`train_data={source}` cannot be read ({one_line(error)}); pass a folder made by prepare_images",
                source=source,
            ) from error
    return tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)


def fingerprint(table: "datasets.Dataset") -> str:
    """Hash of the number of images and of a thousand of them, by which a resumed run knows its data again."""
    rows = np.unique(np.linspace(0, len(table) - 1, min(SAMPLED_ROWS, len(table))).astype(int))
    digest = hashlib.sha256(repr(len(table)).encode())
    for row in rows.tolist():  # one at a time: they may be large
        item = table[row]
        image = item["image"] or {}
        digest.update(repr((item["id"], hashlib.sha256(image.get("bytes") or b"").digest())).encode())
    return digest.hexdigest()[:16]


class ImageReader:
    """Reader of rows of the table; an unreadable image is replaced by the next readable one.

    Args:
        table: see `open_shards`, or a `StreamedTable`.
        max_bad_share: how many in a row may be unreadable, as a share of the table.

    Raises:
        BadDataError: too many unreadable images in a row, here or in `read`; images that are not square.
    """

    def __init__(self, table: "datasets.Dataset | StreamedTable", max_bad_share: float = 1.0):
        self.table = table
        self.tries = max(1, min(len(table), 100, round(max_bad_share * len(table)) + 1))
        self.side = self._first_side()

    def read(self, rows: Sequence[int]) -> tuple[Tensor, list[str], list[tuple[str, str]]]:
        """Images uint8 (rows, 3, side, side), their ids, and (id, reason) of every unreadable one met."""
        found = self.table[list(rows)]
        # Laid out as decoders give them, which spares a slow copy of each.
        shape = (len(rows), 3, self.side, self.side)
        pixels = torch.empty(shape, dtype=torch.uint8, memory_format=torch.channels_last)
        ids: list[str] = []
        rejected: list[tuple[str, str]] = []
        for index, row in enumerate(rows):
            item = {"image": found["image"][index], "id": found["id"][index]}
            for offset in range(1, self.tries + 1):
                try:
                    pixels[index] = self._decoded(item["image"])
                    break
                except UnreadableImageError as error:
                    rejected.append((item["id"], str(error)))
                    item = self.table[(int(row) + offset) % len(self.table)]
            else:
                bad = [name for name, _ in rejected[-self.tries :]]
                raise BadDataError(
                    f"{self.tries} images in a row are unreadable, from {bad[0]} on ({rejected[-1][1]}); mend the "
                    "shards, or raise `max_bad_share`",
                    rows=bad,
                )
            ids.append(item["id"])
        return pixels, ids, rejected

    def close(self) -> None:
        """Remove the open shards of a stream."""
        if hasattr(self.table, "close"):
            self.table.close()

    def spread_rows(self, count: int) -> list[int]:
        """Rows far from each other, within the first shard of a stream."""
        images = getattr(self.table, "first_shard_rows", len(self.table))
        return sorted({images * number // count for number in range(count)})

    def _decoded(self, image: dict[str, Any] | None) -> Tensor:
        pixels = decode(encoded_bytes(image))
        if pixels.shape != (3, self.side, self.side):
            height, width = pixels.shape[1:]
            raise UnreadableImageError(f"its size is {width} x {height}, others have {self.side} x {self.side}")
        return pixels

    def _first_side(self) -> int:
        for row in range(self.tries):
            item = self.table[row]
            try:
                height, width = decode(encoded_bytes(item["image"])).shape[1:]
            except UnreadableImageError:
                continue
            if height != width:
                raise BadDataError(
                    f"image {item['id']} is {width} x {height}, and pretraining takes squares; make shards with "
                    "prepare_images",
                    rows=[item["id"]],
                )
            return height
        raise BadDataError(f"the first {self.tries} images of `train_data` cannot be read; mend the shards")


class MicroBatches(Dataset):
    """Data set of whole batches, indexed by `MicroBatch`.

    Items have `images` uint8 (batch, 3, side, side), `draws` (a dict of tensors with one row per image), `ids` and
    `rejected` (id, reason). A `RetFoundError` is an item too: raised, it would arrive as text from another process.
    """

    def __init__(self, reader: ImageReader, draw: Draw, global_batch: int, seed: int):
        self.reader, self.draw, self.global_batch, self.seed = reader, draw, global_batch, seed

    def __getitem__(self, batch: MicroBatch) -> dict[str, Any] | RetFoundError:
        try:
            images, ids, rejected = self.reader.read(batch.rows)
        except RetFoundError as error:
            return error
        drawn = self.draw(self.global_batch, step_generator(self.seed, batch.step))
        own = slice(batch.start, batch.start + len(batch.rows))
        draws: dict[str, Tensor] = {name: values[own].clone() for name, values in drawn.items()}
        return {"images": images, "draws": draws, "ids": ids, "rejected": rejected}


def make_loader(
    reader: ImageReader, draw: Draw, order: Order, position: Position, num_workers: int, pin_memory: bool
) -> DataLoader:
    """Loader of this process's batches from `position` to the end of the run, with no pause between epochs.

    Args:
        draw: of the objective.
        num_workers: processes; 0 decodes in this one.
        pin_memory: for copies to a GPU that do not block.
    """
    batches = order.batches(position)
    if hasattr(reader.table, "prefetch"):
        batches = reader.table.prefetch(order, position, in_flight=max(1, PREFETCHED_BATCHES * num_workers))
    # Set before Python ends its child processes by SIGTERM, which the workers otherwise ignore.
    closing = multiprocessing.Event()
    atexit.register(closing.set)
    return DataLoader(
        MicroBatches(reader, draw, order.global_batch, order.seed),
        batch_size=None,
        sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        worker_init_fn=partial(_start_worker, closing),
    )


def next_batch(batches: Iterator[dict[str, Any] | RetFoundError]) -> dict[str, Any]:
    """The next item of a loader; raises if that is an error."""
    batch = next(batches)
    if isinstance(batch, RetFoundError):
        raise batch
    return batch


def _start_worker(closing: Event, number: int) -> None:
    """Leave the signals that stop a run to the main process, and end with it, also while waiting for a shard."""

    def terminate(signal_number: int, frame: FrameType | None) -> None:
        if closing.is_set():
            sys.exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    torch.set_num_threads(1)
    exit_with_parent()


@dataclass(frozen=True)
class TrainingImages:
    """Images of a run, and their order.

    Attributes:
        facts: kept in checkpoints, to recognise the images.
    """

    reader: ImageReader
    order: Order
    facts: dict[str, Any]


def open_training_images(
    data_args: DataArguments,
    args: PretrainingArguments,
    accelerator: Accelerator,
    revisions: dict[str, str] | None = None,
) -> TrainingImages:
    """Open the images of `train_data`.

    Args:
        revisions: commits of streamed data sets, as the checkpoint that a run resumes from has them.

    Raises:
        RetFoundError: they cannot be read, or are too few for a step.
    """
    shape = {
        "batch_size": args.per_device_train_batch_size, "accumulation": args.gradient_accumulation_steps,
        "num_processes": accelerator.num_processes, "process": accelerator.process_index, "seed": args.seed,
        "max_steps": args.max_steps, "num_epochs": args.num_train_epochs,
    }  # fmt: skip
    if not data_args.streaming:
        with accelerator.local_main_process_first():
            table = open_shards(data_args.train_data, data_args.cache_dir, data_args.image_root)
        order, facts = Order(len(table), **shape), {"fingerprint": fingerprint(table), "stream": None}
    else:
        from .streaming import open_stream

        table, order, facts = open_stream(data_args, Path(args.output_dir), shape, revisions or {})
    if order.steps_per_epoch < 1:
        raise BadArgumentError(
            f"`train_data` has {order.num_images} images, and one step takes {order.global_batch} (batch x "
            "accumulation x processes); pass a smaller `per_device_train_batch_size`",
            field="per_device_train_batch_size", value=args.per_device_train_batch_size,
        )  # fmt: skip
    return TrainingImages(ImageReader(table, data_args.max_bad_share), order, facts)
