"""Images of pretraining: shards decoded to uint8 batches in the loader's workers, with their random numbers."""

import atexit
import hashlib
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image

from ..data.image_sources import find_shards
from ..errors import RetFoundError, one_line
from ..hub_access import look_up_data_set
from ..images.geometry import to_tensor
from ..images.reading import UnreadableImageError, read_image
from .arguments import DataArguments, PretrainingArguments
from .checkpoints import read_state
from .objectives.base import Draw
from .order import MicroBatch, Order, Position, StreamedOrder, step_generator
from .streaming import Ahead, StreamedTable, fingerprint_of, list_shards, place_of

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"


def decode(encoded: bytes) -> Tensor:
    """Encoded image -> uint8 (3, height, width), the right way up.

    Raises:
        UnreadableImageError: damaged or cut off.
    """
    # torchvision fills what is missing of a JPEG with gray and says so on the console only; Pillow refuses it.
    is_doubtful = encoded[:2] == JPEG_START and JPEG_END not in encoded[-64:]
    try:
        pixels = None if is_doubtful else _torchvision_decode(encoded)
    except (RuntimeError, ValueError):
        pixels = None
    # Deep images keep their 16 bits in torchvision, and animations their frames.
    if pixels is None or pixels.dtype != torch.uint8 or pixels.ndim != 3:
        pixels = to_tensor(read_image(encoded))
    return pixels


def encoded_bytes(image: dict[str, Any] | None) -> bytes:
    """The bytes of a cell of the table; a data set of image files holds paths instead.

    Args:
        image: with `bytes` and `path`, as `datasets` stores images.

    Raises:
        UnreadableImageError: an empty cell, or no such file.
    """
    if image is None:
        raise UnreadableImageError("the row holds no image")
    if image["bytes"] is None and image["path"]:
        try:
            return Path(image["path"]).read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"cannot read {image['path']}: {error.strerror}") from error
    return image["bytes"] or b""


def _torchvision_decode(encoded: bytes) -> Tensor:
    data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    return decode_image(data, ImageReadMode.RGB, apply_exif_orientation=True)


if TYPE_CHECKING:
    import datasets

    from .streaming import StreamedTable

LOOKED_AT = 1024


def open_shards(sources: Sequence[str], cache_dir: str | None = None) -> "datasets.Dataset":
    """All shards as one memory-mapped table with the columns `image` (encoded) and `id`.

    `datasets` converts parquet files into its cache once; later runs map that.

    Args:
        sources: folders with parquet files in them, parquet files, or Hub ids; the latter are fetched.

    Raises:
        RetFoundError: nothing there, or no column `image`.
    """
    import datasets

    tables = []
    for source in sources:
        path = Path(source)
        files = [str(shard) for shard in find_shards(path)] if path.is_dir() else [source]
        if path.exists() and not (files and files[0].endswith(".parquet")):
            raise RetFoundError(f"--train_data {source} holds no parquet shards; make them with prepare_images")
        try:
            if path.exists():
                table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache_dir)
            else:
                look_up_data_set(source)
                table = datasets.load_dataset(source, split="train", cache_dir=cache_dir)
        except Exception as error:  # loading runs through many readers, each with its own errors
            raise RetFoundError(
                f"--train_data {source} cannot be read ({one_line(error)}); give a folder made by prepare_images"
            ) from error
        if "image" not in table.column_names:
            raise RetFoundError(
                f"--train_data {source} has no column image; its columns are {', '.join(table.column_names)}"
            )
        table = table.cast_column("image", datasets.Image(decode=False))
        if "id" not in table.column_names:
            table = table.add_column("id", [f"{source}/{row}" for row in range(len(table))])
        tables.append(table.select_columns(["image", "id"]).cast_column("id", datasets.Value("string")))
    return tables[0] if len(tables) == 1 else datasets.concatenate_datasets(tables)


def fingerprint(table: "datasets.Dataset") -> str:
    """Tells whether a resumed run sees the same images in the same order: their number, and a thousand of them."""
    rows = np.unique(np.linspace(0, len(table) - 1, min(LOOKED_AT, len(table))).astype(int))
    digest = hashlib.sha256(repr(len(table)).encode())
    for row in rows.tolist():  # one at a time: they may be large
        item = table[row]
        image = item["image"] or {}
        digest.update(repr((item["id"], hashlib.sha256(image.get("bytes") or b"").digest())).encode())
    return digest.hexdigest()[:16]


class ImageReader:
    """Reads rows of the table; the place of an unreadable image is taken by the next readable one.

    Args:
        table: see `open_shards`, or a `StreamedTable`.
        max_bad_share: how many in a row may be unreadable, as a share of the table.
    """

    def __init__(self, table: "datasets.Dataset | StreamedTable", max_bad_share: float = 1.0):
        self.table = table
        self.tries = max(1, min(len(table), 100, round(max_bad_share * len(table)) + 1))
        self.side = self._first_side()

    def read(self, rows: Sequence[int]) -> tuple[Tensor, list[str], list[tuple[str, str]]]:
        """Images uint8 (rows, 3, side, side), their ids, and (id, reason) of every unreadable one met."""
        found = self.table[list(rows)]
        pixels = torch.empty(len(rows), 3, self.side, self.side, dtype=torch.uint8)
        ids: list[str] = []
        rejected: list[tuple[str, str]] = []
        for place, row in enumerate(rows):
            item = {"image": found["image"][place], "id": found["id"][place]}
            for offset in range(1, self.tries + 1):
                try:
                    pixels[place] = self._decoded(item["image"])
                    break
                except UnreadableImageError as error:
                    rejected.append((item["id"], str(error)))
                    item = self.table[(int(row) + offset) % len(self.table)]
            else:
                raise RetFoundError(
                    f"{self.tries} images in a row are unreadable, from {rejected[-self.tries][0]} on "
                    f"({rejected[-1][1]}); mend the shards, or raise --max_bad_share"
                )
            ids.append(item["id"])
        return pixels, ids, rejected

    def close(self) -> None:
        """Remove what a stream of shards has on the disk."""
        if hasattr(self.table, "close"):
            self.table.close()

    def spread_rows(self, count: int) -> list[int]:
        """Rows far from each other, in one shard where shards are fetched one by one."""
        images = getattr(self.table, "rows_at_hand", len(self.table))
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
                raise RetFoundError(
                    f"image {item['id']} is {width} x {height}, and pretraining takes squares; make shards with "
                    "prepare_images"
                )
            return height
        raise RetFoundError(f"the first {self.tries} images of --train_data cannot be read; mend the shards")


PREFETCH = 4  # batches of each loader process on their way


class MicroBatches(Dataset):
    """A data set of whole batches, indexed by `MicroBatch`.

    Items have `images` uint8 (batch, 3, side, side), `draws` (a dict of tensors with one row per image), `ids` and
    `rejected` (id, reason).
    """

    def __init__(self, reader: ImageReader, draw: Draw, global_batch: int, seed: int):
        self.reader = reader
        self.draw = draw
        self.global_batch = global_batch
        self.seed = seed

    def __getitem__(self, batch: MicroBatch) -> dict[str, object]:
        images, ids, rejected = self.reader.read(batch.rows)
        drawn = self.draw(self.global_batch, step_generator(self.seed, batch.step))
        own = slice(batch.start, batch.start + len(batch.rows))
        draws: dict[str, Tensor] = {name: values[own].clone() for name, values in drawn.items()}
        return {"images": images, "draws": draws, "ids": ids, "rejected": rejected}


class _Remaining(Iterable[MicroBatch]):
    def __init__(self, order: Order | Ahead, position: Position):
        self.order, self.position = order, position

    def __iter__(self) -> Iterator[MicroBatch]:
        return self.order.batches(self.position)


def make_loader(
    reader: ImageReader, draw: Draw, order: Order, position: Position, num_workers: int, pin_memory: bool
) -> DataLoader:
    """This process's batches from `position` to the end of the run; epochs follow each other without a pause."""
    source: Order | Ahead = order
    if isinstance(reader.table, StreamedTable):
        source = Ahead(reader.table, order, in_flight=max(1, PREFETCH * num_workers))
    # Set before Python ends its child processes by SIGTERM, which the workers otherwise pass over.
    closing = multiprocessing.Event()
    atexit.register(closing.set)
    return DataLoader(
        MicroBatches(reader, draw, order.global_batch, order.seed),
        batch_size=None,
        sampler=_Remaining(source, position),
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=PREFETCH if num_workers else None,
        worker_init_fn=partial(_start_worker, closing),
    )


def next_batch(batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The next item of a loader, or the error of its worker in one line."""
    try:
        return next(batches)
    except RetFoundError as error:
        # A loader worker's error arrives with the worker's traceback as its message.
        raise RetFoundError(str(error).rstrip().rsplit(f"{RetFoundError.__name__}: ", 1)[-1]) from error


def _start_worker(closing: Event, number: int) -> None:
    """Leave the signals that stop a run to the main process, which needs its workers for the step at hand."""

    def terminate(signal_number: int, frame: FrameType | None) -> None:
        if closing.is_set():
            sys.exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    torch.set_num_threads(1)


T = TypeVar("T")


@dataclass(frozen=True)
class TrainingImages:
    """What a run reads, and when.

    Attributes:
        facts: what a checkpoint has to say of them.
    """

    reader: ImageReader
    order: Order
    facts: dict[str, Any]


def open_training_images(
    data_args: DataArguments, args: PretrainingArguments, accelerator: Accelerator, checkpoint: Path | None = None
) -> TrainingImages:
    """Open the images of `--train_data`.

    Args:
        checkpoint: that the run goes on from; a stream takes the commits of its data sets.

    Raises:
        RetFoundError: they cannot be read, or are too few for a step.
    """
    processes = accelerator.num_processes
    shape = {
        "batch_size": args.per_device_train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
        "num_processes": processes,
        "process": accelerator.process_index,
        "seed": args.seed,
        "max_steps": args.max_steps,
        "num_epochs": args.num_train_epochs,
    }
    if data_args.streaming:
        mixed = data_args.mixed_shards
        revisions = read_state(checkpoint).get("revisions", {}) if checkpoint is not None else {}
        shards = _on_main(accelerator, lambda: list_shards(data_args.train_data, revisions))
        root, output_dir = Path(data_args.cache_dir or args.output_dir), Path(args.output_dir)
        folder = place_of(root, output_dir, fingerprint_of(shards), accelerator.process_index, processes)
        # The mixed shards, the next ones, and one at the cut between two processes.
        table = StreamedTable(shards, folder, limit=2 * mixed + 1)
        rows = tuple(shard.rows for shard in shards)
        order: Order = StreamedOrder(len(table) // processes * processes, shard_rows=rows, mixed=mixed, **shape)
        facts = {
            "fingerprint": fingerprint_of(shards),
            "revisions": {shard.source: shard.revision for shard in shards if shard.source},
            "stream": {"processes": processes, "mixed_shards": mixed},
        }
    else:
        with accelerator.local_main_process_first():
            table = open_shards(data_args.train_data, data_args.cache_dir)
        order = Order(len(table), **shape)
        facts = {"fingerprint": fingerprint(table), "stream": None}
    if order.steps_per_epoch < 1:
        raise RetFoundError(
            f"--train_data has {order.num_images} images, and one step takes {order.global_batch} (batch x "
            "accumulation x processes); give a smaller --per_device_train_batch_size"
        )
    return TrainingImages(ImageReader(table, data_args.max_bad_share), order, facts)


def _on_main(accelerator: Accelerator, function: Callable[[], T]) -> T:
    """What `function` returns or raises on the main process, on all of them."""
    found: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            found[0] = function()
        except RetFoundError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    if found[1] is not None:
        raise RetFoundError(found[1])
    return found[0]
