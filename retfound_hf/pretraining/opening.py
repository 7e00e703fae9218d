"""The training images of a run and the order in which they come: a table on disk, or a stream of shards."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..runs.errors import RetFoundError
from .arguments import DataArguments, PretrainingArguments
from .checkpoints import read_state
from .images import ImageReader, fingerprint, open_shards
from .order import Order
from .streaming.listing import fingerprint_of, list_shards
from .streaming.order import StreamedOrder
from .streaming.places import place_of
from .streaming.table import StreamedTable

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
