"""Batches on their way to the device: decoded and given their random numbers in the loader's workers."""

import atexit
import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.synchronize import Event
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..runs.errors import RetFoundError
from .images import ImageReader
from .objectives.base import Draw
from .order import MicroBatch, Order, Position, step_generator
from .streaming.ahead import Ahead
from .streaming.table import StreamedTable

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
